"""Checks of everything that a user set at once: `check_values` walks options and files, whatever their nesting.

No number is NaN or infinite, no whole number is beyond 64 bits, seeds are what every generator takes, and texts can be
written to a file. What a single option allows besides is checked where it is used (`kedit.errors.at_least`).
"""

from __future__ import annotations

import math
import unicodedata
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from kedit.errors import KeditError, shown

SEEDS = 2**32 - 1
"""The largest seed that numpy takes, and so Lightning."""

_WHOLE = 2**63 - 1
_UNNAMED = ("init_args", "dict_kwargs")  # what the option parser puts between an option and its class


def check_values(values: Any, where: str = "") -> None:
    """Refuse values that no option means.

    Args:
        values: A mapping, a parsed configuration, or a list of values.
        where: The full name of what is above, e.g. `"model.adapter"`.

    Raises:
        KeditError: Names the option.
    """
    for name, value in _leaves(values, where):
        if isinstance(value, float):
            if not math.isfinite(value):
                raise KeditError(f"{name}: {value} is not a finite number")
        elif isinstance(value, str):
            check_text(name, value)
        elif not isinstance(value, bool):
            if not -_WHOLE <= value <= _WHOLE:
                raise KeditError(f"{name}: {shown(value, 40)} is too large a number")
            if _is_seed(name) and not 0 <= value <= SEEDS:
                raise KeditError(f"{name}: {value} is no seed; give a whole number from 0 to {SEEDS}")


def check_text(name: str, text: str) -> None:
    """Refuse a text that no file name, file or message can hold.

    Raises:
        KeditError: It has a NUL, or bytes that are no UTF-8.
    """
    if "\0" in text:
        raise KeditError(f"{name}: {shown(text)} has a NUL character")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise KeditError(f"{name}: {shown(text)} is no text: half of a UTF-16 pair, or bytes that are no UTF-8")


def control_in(text: str) -> bool:
    """Whether a text has a character that ends a line or steers a terminal, such as a newline, ESC or NUL."""
    return any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def check_path(name: str, text: str) -> None:
    """Refuse a path that no file can have: empty, a NUL, half a character, or longer than the system takes.

    Raises:
        KeditError: Names the option.
    """
    check_text(name, text)
    if not text:
        raise KeditError(f"{name}: the path is empty")
    if len(text.encode()) > 4000 or any(len(part.encode()) > 255 for part in text.split("/")):
        raise KeditError(f"{name}: {shown(text)} is too long a path")


def _is_seed(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "seed" or last.endswith("_seed") or last == "seed_everything"


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every number and text below `value`, with its full name."""
    if isinstance(value, bool | int | float | str):
        yield name, value
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from _leaves(one, name)
    elif isinstance(value, Mapping | Namespace):
        inside = value if isinstance(value, Mapping) else vars(value)
        for key, one in inside.items():
            if isinstance(key, str) and not key.startswith("_"):
                yield from _leaves(one, name if key in _UNNAMED else f"{name}.{key}".lstrip("."))
