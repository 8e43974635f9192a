"""`read_any`: records of a file, in whichever of kedit's formats it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kedit.data.readers.counterfact import read_counterfact
from kedit.data.readers.jsonl import read_records
from kedit.data.readers.mquake import read_mquake
from kedit.data.readers.robust import read_robust
from kedit.data.readers.zsre import read_zsre
from kedit.errors import KeditError
from kedit.request import EditRecord
from kedit.runtime.textfile import regular_file

# The most demanding first: what a later one reads as well may hold more for an earlier one.
_READERS: Sequence[Callable[[str | Path], list[EditRecord]]] = (
    read_robust,
    read_records,
    read_counterfact,
    read_zsre,
    read_mquake,
)


def read_any(path: str | Path, option: str) -> list[EditRecord]:
    """Records of a file of any format that kedit edits (docs/data.md).

    Args:
        path: The file.
        option: The option that names it, for messages.

    Raises:
        KeditError: There is no such file, or no reader takes it; says what the reader of kedit's own form missed.
    """
    try:
        regular_file(path, "a .json or .jsonl file")
    except KeditError as error:
        raise KeditError(f"{option}: {error}") from None
    why = ""
    for reader in _READERS:
        try:
            return reader(path)
        except KeditError as error:
            why = str(error) if reader is read_records else why
    raise KeditError(f"{option}: none of kedit's formats; as its own form: {why}")
