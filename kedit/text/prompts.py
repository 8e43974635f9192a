"""How texts are put together: the subject into its template, the answer behind its prompt.

Pure functions on strings. Templates have one slot `{}` for the subject; `{{}}` stands for braces that mean
themselves. What stands between a prompt and its answer is decided in one place, `between`, by the characters on
either side of the seam.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Joiner = Literal["auto", "space", "none"]

SLOT = re.compile(r"(?<!\{)\{\}(?!\})")
NAMED_SLOT = "{subject}"

# Scripts that are written without spaces between words, as the names of their characters begin.
_UNSPACED = (
    "CJK UNIFIED", "CJK COMPATIBILITY", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "IDEOGRAPHIC",
    "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "YI SYLLABLE", "TAI THAM", "TAI VIET", "NEW TAI LUE", "BALINESE",
    "JAVANESE",
)  # fmt: skip
_ENDS_A_CLAUSE = ".,!?%…’”»›"  # a quotation mark right behind one of these closes
_QUOTES = "\"'`"


def slots(template: str) -> int:
    """How many places for the subject a template has."""
    return len(SLOT.findall(template))


def split(template: str) -> tuple[str, str]:
    """What stands before and behind the slot of a template; a text without one stands before it, whole."""
    found = SLOT.search(template)
    if found is None:
        return literal(template), ""
    return literal(template[: found.start()]), literal(template[found.end() :])


def fill(template: str, subject: str) -> str:
    """The template with its slots filled, and with `{{}}` as `{}`."""
    return subject.join(literal(part) for part in SLOT.split(template))


def literal(text: str) -> str:
    """The text with `{{}}` as `{}`."""
    return text.replace("{{}}", "{}")


def escaped(text: str) -> str:
    """The text with `{}` as `{{}}`, so that `fill` gives it back."""
    return SLOT.sub("{{}}", text)


def trimmed(prompt: str) -> str:
    """A prompt without white space before it and spaces behind it; a newline or tab at its end stays.

    Spaces behind it are no part of it: what stands between it and its answer is decided by `between`.
    """
    return prompt.lstrip().rstrip(" ")


def between(prompt: str, answer: str, joiner: Joiner = "auto") -> str:
    """What stands between a prompt and its answer: a space, or nothing.

    With `auto` nothing stands behind white space, an opening quotation mark or bracket, a `/` or punctuation that
    brings its own space (as of Chinese and Japanese), and between two letters of scripts that are written without
    spaces. Everywhere else it is one space.

    Args:
        prompt: The text before the seam.
        answer: The text behind it.
        joiner: `space` or `none`, where the user decides; there is never a space behind white space.
    """
    if not prompt or joiner == "none":
        return ""
    last = prompt[-1]
    if last.isspace():
        return ""
    if joiner == "space":
        return " "
    glued = last in "/\u0f0b" or opens(prompt) or _is_wide_punctuation(last)  # U+0F0B: between Tibetan syllables
    return "" if glued or (is_unspaced(last) and is_unspaced(answer[:1])) else " "


def joined(prompt: str, answer: str, joiner: Joiner = "auto") -> str:
    """The prompt, what stands between, and the answer."""
    return f"{prompt}{between(prompt, answer, joiner)}{answer}"


def opens(text: str) -> bool:
    """Whether the text ends in an opening bracket or quotation mark.

    A mark that is its own closing mark (`"`), or that other languages close with (`“`), opens unless it stands right
    behind a word or the end of a clause; a `"` must also be the odd one out.
    """
    if not text:
        return False
    last, rest = text[-1], text[:-1]
    kind = unicodedata.category(last)
    if kind == "Ps":
        return True
    if kind not in ("Pi", "Pf") and last not in _QUOTES:
        return False
    ahead = rest[-1:]
    if ahead and ((is_word(ahead) and not is_unspaced(ahead)) or ahead in _ENDS_A_CLAUSE or _closes(ahead)):
        return False
    if last == '"':
        return text.count('"') % 2 == 1
    return kind == "Pi" or not ahead or ahead.isspace() or opens(rest) or ahead in ":=-–—"


def is_word(character: str) -> bool:
    """Whether it is part of a word: a letter, a mark on one, a digit, or `_`."""
    return character == "_" or unicodedata.category(character)[0] in "LMN"


def is_unspaced(character: str) -> bool:
    """Whether it is a letter, or a mark on one, of a script that is written without spaces between words."""
    if not character or character.isascii() or unicodedata.category(character)[0] not in "LM":
        return False
    return unicodedata.name(character, "").startswith(_UNSPACED)


def runs_on(inside: str, outside: str) -> bool:
    """Whether a word goes on from the character `inside`, at the edge of a text, to the one `outside` beside it.

    Never next to a letter of a script without spaces, where spelling does not tell.
    """
    return is_word(outside) and not (is_unspaced(outside) or is_unspaced(inside))


def _closes(character: str) -> bool:
    return unicodedata.category(character) == "Pe"


def _is_wide_punctuation(character: str) -> bool:
    wide = unicodedata.east_asian_width(character) in "WF"
    return wide and unicodedata.category(character)[0] == "P"
