"""Texts as a line of a terminal has them: no control characters, no line breaks, not too long."""

from __future__ import annotations

import re

CLAUSE = re.compile(r"(?<=[\w\"'”’])(?:[,.;:!?]+(?=\s|$)|\s*\(|[，。；：！？、]|\n|\s[-–—]\s)")
"""Where the first thing that was said ends."""


def one_line(text: str) -> str:
    """A text with single spaces, and with control characters written out."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def cut(text: str, most: int) -> str:
    """At most `most` characters of a line, whole words where there are any; `..` says that more follows."""
    if len(text) <= most:
        return text
    short = text[: most - 2]
    whole = short.rsplit(" ", 1)[0] if " " in short else short
    return whole.rstrip(" ,.;:") + ".."


def cut_middle(text: str, most: int) -> str:
    """At most `most` characters of a line, with ` .. ` in the middle: a prompt is known by its two ends."""
    if len(text) <= most:
        return text
    half = (most - 4) // 2
    return f"{text[:half].rstrip()} .. {text[-half:].lstrip()}"


def first_clause(text: str) -> str:
    """What stands before the first comma, period, bracket, dash, line end or the like."""
    found = CLAUSE.search(text)
    return text if found is None else text[: found.start()]
