"""A table of a report, before it is HTML, Markdown, CSV or LaTeX: texts with the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What stands in a cell.

    Attributes:
        text: As people read it.
        small: A second line: an interval, a range of ranks.
        value: The number, with every digit; None of a text.
        low: Lower end of its interval.
        high: Upper end.
        star: Whether the interval of a difference leaves 0 out.
        share: Of a number in percent, how long its bar is, 0 to 100; None: it has no bar.
        best: Whether it is the best of its column.
        tone: `up` or `down` of a difference that leaves 0 out and is a gain or a loss, for its colour; else empty.
    """

    text: str
    small: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    star: bool = False
    share: float | None = None
    best: bool = False
    tone: str = ""


EMPTY = Entry("")


@dataclass(frozen=True)
class Column:
    """The head of a column.

    Attributes:
        name: What it shows.
        unit: In which unit, where it has one.
        text: Whether it holds texts, not numbers.
        whole: Its name where it stands by itself, as in a CSV file; empty: `name`.
    """

    name: str
    unit: str = ""
    text: bool = False
    whole: str = ""


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        name: Of its files: letters, digits and hyphens.
        title: Its heading.
        columns: Their heads; the first column says what a row is.
        rows: As many entries each as there are columns.
        notes: Lines below it.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...] = ()


def texts(row: Sequence[object]) -> tuple[Entry, ...]:
    """A row of plain texts; None is an empty cell."""
    return tuple(EMPTY if value is None else Entry(str(value)) for value in row)


def number(value: float | None, digits: int = 1, sign: str = "") -> Entry:
    """A number without an interval."""
    if value is None:
        return EMPTY
    return Entry(f"{round(value, digits) + 0.0:{sign}.{digits}f}", value=value)  # no -0.0
