"""The journal of a run whose edits accumulate: what every edit batch adds, appended once to a file of its own.

A checkpoint only says how many of the file's bytes belong to it, so its size and the time it takes do not grow with
the number of edits. What a kill left behind these bytes is cut off before the next entry is written.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from kedit.errors import KeditError
from kedit.runfolder import writing

_HEAD = struct.Struct("<QI")  # bytes of an entry and their CRC-32
_SLACK = 2**20

Entry = dict[str, Any]


class Journal:
    """Appends entries: tensors, numbers, strings, and lists, tuples and dicts of them.

    Args:
        path: The file; what is in it behind `size` is overwritten.
        size: Bytes that belong to the run.
        base: Of these, those of a first entry that stands for many (`grown`).
    """

    def __init__(self, path: Path, size: int = 0, base: int = 0) -> None:
        self.path, self.size, self.base = path, size, base

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
        if base:
            self.base = self.size

    def card(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"file": self.path.name, "bytes": self.size, "base": self.base}


def read_journal(path: Path, size: int) -> list[Entry]:
    """The entries in the first `size` bytes.

    Raises:
        KeditError: The file is missing, shorter, or damaged.
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
    except (struct.error, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise KeditError(f"{path} is damaged at byte {at}: {str(error).splitlines()[0]}") from None
