"""Sentences of RippleEdits: the phrase of a relation tells the subject from the target.

`The name of the mother of {} is` with `The name of the mother of Ada Pell is Mina Olt.` gives Ada Pell and Mina Olt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_NAMED = (
    *("mother", "father", "brother", "sister", "spouse", "uncle", "aunt", "child", "stepfather", "stepmother"),
    *("country of citizenship", "alma mater", "employer", "field of work", "head of government", "head of state"),
    *("anthem", "author", "editor", "director", "screenwriter", "architect", "composer", "founder"),
)
"""Relations that are phrased `The name of the ... of {} is`."""

_PLAIN = (
    *("place of birth", "place of death", "place of burial", "sexual orientation", "occupation", "eye color"),
    *("date of birth", "date of death", "official language"),
)
"""Relations that are phrased `The ... of {} is`."""

PHRASES: Mapping[str, str] = MappingProxyType(
    {name.upper().replace(" ", "_"): f"The name of the {name} of {{}} is" for name in _NAMED}
    | {name.upper().replace(" ", "_"): f"The {name} of {{}} is" for name in _PLAIN}
    | {
        "SEX_OR_GENDER": "The gender of {} is",
        "NATIVE_LANGUAGE": "The mother tongue of {} is",
        "CAPITAL": "The name of the capital city of {} is",
        "CURRENCY": "The name of the currency in {} is",
        "POSITION_HELD": "The name of the position held by {} is",
        "SIBLING": "The names of the siblings of {} are",
        "CAST_MEMBER": "The names of the cast members of {} are",
        "NUMBER_OF_CHILDREN": "The number of children {} has is",
        "COUNTRY": "The name of the country which {} is associated with is",
        "ETHNIC_GROUP": "The name of the ethnic group which {} is associated with is",
        "RELIGION": "The name of the religion which {} is associated with is",
        "MEMBER_OF_SPORTS_TEAM": "The name of the sports team which {} is a member of is",
        "LEAGUE": "The name of the league which {} plays in is",
        "CONTINENT": "The name of the continent which {} is part of is",
        "CAPITAL_OF": "The name of the country which {} is the capital of is",
        "LIKELY_ANTHEM": "The name of the anthem that is most likely to be performed in {} is",
        "AWARD_RECEIVED": "The name of the award {} won is",
        "FOLLOWS": "{} follows",
        "FOLLOWED_BY": "{} is followed by",
    }
)
"""Relation, as the file calls it -> its phrase, with `{}` for the subject; the target and a period follow it."""


@dataclass(frozen=True, slots=True)
class PhrasedFact:
    """What a sentence says.

    Attributes:
        before: What stands before the subject.
        subject: The subject.
        behind: What stands between it and the target.
        target: The target.
        target_true: That of the old sentence, where there is one.
    """

    before: str
    subject: str
    behind: str
    target: str
    target_true: str | None


def fact_in(sentence: str, relation: str, old: str | None = None) -> PhrasedFact | None:
    """Subject and target of a sentence, or None where it is not the phrase of its relation.

    Where what follows the subject occurs several times (` is ` in a title), the last place is taken up to which the old
    sentence, which has the same subject, agrees; without an old sentence the first.

    Args:
        sentence: The edit, complete.
        relation: As the file calls it, e.g. `MOTHER`.
        old: The sentence before the edit.
    """
    phrase = PHRASES.get(relation)
    if phrase is None:
        return None
    before, _, behind = phrase.partition("{}")
    found = list(_splits(sentence.strip(), before, behind))
    earlier = dict(_splits(old.strip(), before, behind)) if old is not None else {}
    shared = [split for split in found if split[0] in earlier]
    if not found:
        return None
    subject, target = shared[-1] if shared else found[0]
    return PhrasedFact(before, subject, behind, target, earlier.get(subject))


def _splits(sentence: str, before: str, behind: str) -> list[tuple[str, str]]:
    """Every way to read a sentence as a subject and a target."""
    text = sentence.removesuffix(".")
    if not text.startswith(before):
        return []
    text, seam, found, at = text.removeprefix(before), f"{behind} ", [], 0
    while (at := text.find(seam, at)) >= 0:
        subject, target = text[:at].strip(), text[at + len(seam) :].strip()
        if subject and target:
            found.append((subject, target))
        at += 1
    return found
