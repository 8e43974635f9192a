"""A prompt with its statement denied: `negated`. A small rule for English that would rather say nothing than nonsense.

Asked "The capital of France is not", a model that now believes in Rome should not say Rome: an edit that fires on every
prompt that looks like its own does ("Built on Sand", 2025).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from kedit.text.prompts import split

_AUXILIARIES = ("is", "are", "was", "were", "can", "could", "will", "would", "may", "might", "should", "must")
_PRESENT = """
    plays:play works:work speaks:speak writes:write lives:live belongs:belong follows:follow holds:hold owns:own
    practices:practice practises:practise professes:profess originates:originate hails:hail comes:come
    premieres:premiere stars:star lies:lie borders:border shares:share uses:use represents:represent
    performs:perform teaches:teach leads:lead serves:serve sits:sit stands:stand has:have
"""
_PAST = """
    played:play worked:work spoke:speak wrote:write lived:live belonged:belong followed:follow held:hold owned:own
    practiced:practice practised:practise professed:profess came:come premiered:premiere debuted:debut aired:air
    starred:star lay:lie died:die passed:pass taught:teach led:lead served:serve lost:lose succumbed:succumb
    had:have originated:originate performed:perform moved:move studied:study graduated:graduate attended:attend
"""
_BARE: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        verb: (helper, bare)
        for helper, pairs in (("does", _PRESENT), ("did", _PAST))
        for verb, bare in (pair.split(":") for pair in pairs.split())
    }
)
"""A verb in the third person -> its helper and its plain form."""

_WORD = re.compile(r"[A-Za-z][A-Za-z'’]*")
_RELATIVE = re.compile(r"\s*,?\s*(?:who|which|that)\s+|\s+", re.IGNORECASE)
_NEGATIVE = re.compile(r"\b(?:not|never|no|nobody|nothing|cannot|without|neither|nor)\b|n['’]t\b", re.IGNORECASE)
_ASKING = re.compile(r"\s*(?:what|who|whom|whose|which|where|when|why|how)\b", re.IGNORECASE)


def negated(template: str, subject: str) -> str | None:
    """The prompt with "not" in the clause that the answer completes; None where the rule does not fit.

    Words of the subject do not count. One of two rules must fit, and nothing else of the prompt may be one of their
    verbs, a negation, or a question:

    - one auxiliary ("is", "was", "can", ...), after which "not" is put;
    - one common verb in the third person right behind the subject, or behind "who", "which" or "that" there ("plays",
      "died"), before which "does not" or "did not" is put.

    Args:
        template: The request's prompt, with one {} for the subject.
        subject: What stands there.
    """
    before, after = split(template)
    outside = f"{before}\0{after}"
    if "?" in outside or _NEGATIVE.search(outside) or _ASKING.match(before or after):
        return None
    helpers = [found for found in _WORD.finditer(outside) if found[0] in _AUXILIARIES]
    lead = _RELATIVE.match(after)
    verb = None if lead is None else _WORD.match(after, lead.end())
    if verb is not None and verb[0] in _BARE:
        if helpers:
            return None
        helper, bare = _BARE[verb[0]]
        rest = after[verb.end() :]
        perfect = bare == "have" and re.match(r"\s+(?:been|\w+ed)\b", rest)
        denied = f"{verb[0]} not" if perfect else f"{helper} not {bare}"
        return f"{before}{subject}{after[: verb.start()]}{denied}{rest}"
    if len(helpers) != 1:
        return None
    at, word = helpers[0].end(), helpers[0][0]
    denied = outside[:at] + ("not" if word == "can" else " not") + outside[at:]
    return denied.replace("\0", subject, 1)
