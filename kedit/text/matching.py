"""Whether what a model said is the answer: comparing texts, without a model.

What each number means: docs/metrics.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from kedit.text.prompts import runs_on

_AROUND = "\"'“”‘’«»「」『』` "


def begins_with(text: str, answers: Sequence[str]) -> bool:
    """`text` begins with one of `answers`, as a word of its own.

    Case, leading and trailing space, quotation marks around it and runs of spaces do not count; the word must not go on
    ("Englishman" does not begin with "English"). Where a script is written without spaces, spelling cannot tell.
    """
    said = _normalise(text)
    return any(said.startswith(a) and _is_whole(said, 0, len(a)) for a in map(_normalise, answers) if a)


def contains(text: str, answers: Sequence[str]) -> bool:
    """One of `answers` stands somewhere in `text`, as words of its own; what does not count is as in `begins_with`."""
    said = _normalise(text)
    return any(_stands_in(said, a) for a in map(_normalise, answers) if a)


def after_prompt(text: str, prompt: str) -> str:
    """What an answer says once it has repeated its prompt, as chat models do; all of one that does not."""
    repeated = re.match(r"\s*" + r"\s+".join(map(re.escape, prompt.split())), text, re.IGNORECASE)
    return text[repeated.end() :] if repeated else text


def _stands_in(said: str, answer: str) -> bool:
    at = said.find(answer)
    while at >= 0:
        if _is_whole(said, at, at + len(answer)):
            return True
        at = said.find(answer, at + 1)
    return False


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether no word goes on across the edges of a part of the text."""
    goes_on = end < len(text) and runs_on(text[end - 1], text[end])
    return not (goes_on or (start > 0 and runs_on(text[start], text[start - 1])))


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold().strip(_AROUND)
