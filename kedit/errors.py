"""The one exception of kedit that a user is meant to read.

Anything wrong with what the user gave (a record, an option, a file) raises `KeditError` with a message
of one or two lines that names the culprit and says what to do. The command prints it and exits with
status 2; library users catch it. Programming errors raise Python's own exceptions instead.
"""

from __future__ import annotations

import errno
import math
from pathlib import Path


class KeditError(Exception):
    """Bad input. The message names the record or option and says what to do, in one or two lines."""


class CannotWrite(KeditError):
    """A full disk or an unwritable folder. The message names the file."""


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR)
"""What the system says of a full disk, and of a folder where nothing can be written."""


def cannot_write(error: BaseException | None, folder: Path) -> str | None:
    """What to tell where `error`, or one that it came from, is a file that cannot be written; None where it is not.

    Args:
        error: What ended a run.
        folder: Where the run writes, for errors that do not name their file.
    """
    found: str | None = None
    while error is not None:
        if isinstance(error, CannotWrite):
            return str(error)
        if found is None and isinstance(error, OSError) and error.errno in UNWRITABLE:
            found = f"{error.filename or folder} cannot be written: {error.strerror}"
        error = error.__cause__ or error.__context__
    return found


def at_least(option: str, value: float | None, least: float) -> None:
    """Checks a number that a user gave.

    Args:
        option: Its full name, e.g. `"data.limit"`.
        value: The number; None passes.
        least: The smallest allowed.

    Raises:
        KeditError: It is less, or no finite number.
    """
    if value is None:
        return
    if not math.isfinite(value):
        raise KeditError(f"{option}: {value} is not a finite number")
    if value < least:
        raise KeditError(f"{option}: {value} is less than {least}")


def above_zero(option: str, value: float | None) -> None:
    """Checks a number that a user gave.

    Args:
        option: Its full name, e.g. `"model.mom2_update_weight"`.
        value: The number; None passes.

    Raises:
        KeditError: It is 0 or less, or no finite number.
    """
    at_least(option, value, -math.inf)
    if value is not None and value <= 0:
        raise KeditError(f"{option}: {value} is not above 0")


def within(option: str, value: float | None, low: float, high: float) -> None:
    """Checks a number that a user gave, whose bounds both count as allowed.

    Args:
        option: Its full name, e.g. `"results.resamples"`.
        value: The number; None passes.
        low: The smallest allowed.
        high: The largest allowed.

    Raises:
        KeditError: It is outside, or NaN.
    """
    at_least(option, value, low)
    if value is not None and value > high:
        raise KeditError(f"{option}: {value} is more than {high}")


BROKEN = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model's own code raises when it is run in a way that it does not know."""


def shown(value: object, width: int = 80) -> str:
    """A value of the user's for a message: quoted like `repr`, on one line, and cut in the middle where it is long.

    Args:
        value: A text, path, number, list, ...
        width: The most characters of what is returned.
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits, a list in a list in a list ...
        kind = type(value).__name__
        text = "a number of too many digits" if isinstance(value, int) else f"a {kind} that cannot be written out"
    text = text.replace("\n", " ")
    if len(text) <= width:
        return text
    tail = width // 3
    return f"{text[: width - tail - 5]} ... {text[-tail:]}"
