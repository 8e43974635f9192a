"""The journal of a run whose edits accumulate: what every edit batch adds, appended once to a file of its own.

A checkpoint only says how many of the file's bytes belong to it, so its size and the time it takes do not grow with
the number of edits. What a kill left behind these bytes is cut off before the next entry is written.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from kedit.errors import KeditError
from kedit.runtime import checksum
from kedit.runtime.files import writing

_HEAD = struct.Struct("<QI")  # bytes of an entry and their CRC-32
_SLACK = 2**20
_NAME = re.compile(r"edits-[0-9]{1,12}\.bin")

Entry = dict[str, Any]


class Journal:
    """Appends entries: tensors, numbers, strings, and lists, tuples and dicts of them.

    Args:
        path: The file; what is in it behind `size` is overwritten.
        size: Bytes that belong to the run.
        base: Of these, those of a first entry that stands for many (`grown`).
        crc: CRC-32 of these bytes; None where it is not known (journals of an older kedit).
    """

    def __init__(self, path: Path, size: int = 0, base: int = 0, crc: int | None = 0) -> None:
        self.path, self.size, self.base, self.crc = path, size, base, crc

    @classmethod
    def new(cls, folder: Path, number: int) -> Journal:
        """An empty one, begun at the edit batch `number`."""
        return cls(folder / f"edits-{number}.bin")

    @classmethod
    def of_card(cls, folder: Path, card: Any) -> Journal:
        """The one that a checkpoint in `folder` speaks of. What is no name that `new` gives is never joined to a path.

        Raises:
            KeditError: The card is not one that `card` gave.
        """
        if not isinstance(card, dict):
            raise KeditError(f"the checkpoint in {folder} is damaged: it says nothing of its journal")
        name, size, base, crc = (card.get(key) for key in ("file", "bytes", "base", "crc"))
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise KeditError(f"the checkpoint in {folder} is damaged: {str(name)[:80]!r} is not the name of a journal")
        if (
            type(size) is not int
            or type(base) is not int
            or not 0 <= base <= size
            or type(crc) not in (int, type(None))
        ):
            raise KeditError(f"the checkpoint in {folder} is damaged: it does not say how much of {name} is its")
        return cls(folder / name, size, base, crc)

    @property
    def grown(self) -> bool:
        """Whether one entry in place of all might be much smaller: only for entries that can be added up."""
        return self.size > 2 * self.base + _SLACK

    def append(self, entries: Iterable[Entry], base: bool = False) -> None:
        """Writes entries and flushes them to the disk.

        Args:
            entries: What to write, in order.
            base: They stand for all that was done so far.

        Raises:
            KeditError: The disk is full or the folder cannot be written; the journal is as it was.
        """
        data = b"".join(map(_packed, entries))
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "w+b") as file:
                file.truncate(self.size)
                file.seek(self.size)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        self.size += len(data)
        self.crc = None if self.crc is None else zlib.crc32(data, self.crc)
        if base:
            self.base = self.size

    def card(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"file": self.path.name, "bytes": self.size, "base": self.base, "crc": self.crc}


def read_journal(path: Path, size: int, crc: int | None = None) -> list[Entry]:
    """The entries in the first `size` bytes.

    Args:
        path: The file.
        size: Bytes that belong to the run.
        crc: Their CRC-32, where it is known.

    Raises:
        KeditError: The file is missing, shorter, damaged, or that of another run.
    """
    try:
        with path.open("rb") as file:
            data = file.read(size)
    except OSError as error:
        raise KeditError(f"{path}, which the checkpoint beside it needs, cannot be read: {error.strerror}") from None
    if len(data) < size:
        raise KeditError(f"{path} is truncated: the checkpoint beside it needs {size} bytes, there are {len(data)}")
    entries, at = [], 0
    while at < size:
        entry, at = _unpacked(path, data, at)
        entries.append(entry)
    if crc is not None and crc != zlib.crc32(data):
        raise KeditError(f"{path} is not what the checkpoint beside it needs: it holds other edits")
    return entries


def tensor_bytes(value: Any) -> int:
    """Bytes of the tensors in nested dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sum(map(tensor_bytes, value))
    return 0


def _packed(entry: Entry) -> bytes:
    buffer = io.BytesIO()
    torch.save(entry, buffer)
    data = buffer.getvalue()
    return _HEAD.pack(len(data), zlib.crc32(data)) + data


def _unpacked(path: Path, data: bytes, at: int) -> tuple[Entry, int]:
    """The entry that begins at byte `at`, and where the next one does."""
    try:
        length, crc = _HEAD.unpack_from(data, at)
        start, end = at + _HEAD.size, at + _HEAD.size + length
        if zlib.crc32(data[start:end]) != crc:
            raise ValueError("its checksum is wrong")
        return torch.load(io.BytesIO(data[start:end]), map_location="cpu", weights_only=True), end
    except checksum.UNREADABLE as error:
        raise KeditError(f"{path} is damaged at byte {at}: {checksum.first_line(error)}") from None
