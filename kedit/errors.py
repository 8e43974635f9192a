"""The one exception of kedit that a user is meant to read.

Anything wrong with what the user gave (a record, an option, a file) raises `KeditError` with a message
of one or two lines that names the culprit and says what to do. The command prints it and exits with
status 2; library users catch it. Programming errors raise Python's own exceptions instead.
"""

from __future__ import annotations


class KeditError(Exception):
    """Bad input. The message names the record or option and says what to do, in one or two lines."""


def at_least(option: str, value: float | None, least: float) -> None:
    """Checks a number that a user gave.

    Args:
        option: Its full name, e.g. `"data.limit"`.
        value: The number; None passes.
        least: The smallest allowed.

    Raises:
        KeditError: It is less.
    """
    if value is not None and value < least:
        raise KeditError(f"{option}: {value} is less than {least}")
