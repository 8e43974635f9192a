"""The terms of a text, by which texts are compared: words, and pairs of letters where words are written together."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kedit.text.prompts import is_unspaced

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_POSSESSIVE = re.compile(r"['’]s?$")


def terms(text: str) -> list[str]:
    """Each term of a text once, in the order of their first places.

    A term is a word, case folded and without a possessive 's. A run of letters of a script that is written without
    spaces is as many terms as it has pairs of neighbouring letters. A text without any word is one term, the text.
    """
    found = dict.fromkeys(term for word in _WORD.findall(text) for term in _of_word(word.casefold()))
    return list(found) or [text]


def _of_word(word: str) -> Iterator[str]:
    letters = _POSSESSIVE.sub("", word)
    if len(letters) > 1 and any(is_unspaced(letter) for letter in letters):
        yield from (letters[i : i + 2] for i in range(len(letters) - 1))
    else:
        yield letters
