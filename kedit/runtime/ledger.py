"""The ledger of `results.jsonl`: a checksum of every line that a run wrote, kept in memory and beside its checkpoint.

A checkpoint vouches for the first bytes of the ledger, and through them for lines. What is lost, altered, doubled or
not the run's own is found by line, when a run is resumed and at its end.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedit.errors import KeditError
from kedit.runtime.files import writing
from kedit.runtime.run_folder import read_rows

LEDGER = "lines.txt"  # in the checkpoints' folder


@dataclass(frozen=True)
class Entry:
    """A line of `results.jsonl`.

    Attributes:
        crc: CRC-32 of its bytes.
        measured_at: The moment that it is about.
        case: Its record.
    """

    crc: int
    measured_at: str
    case: str

    def __str__(self) -> str:
        return f"{self.case} ({self.measured_at})"

    def line(self) -> bytes:
        """As the ledger's file holds it."""
        return f"{self.crc:08x} {json.dumps([self.measured_at, self.case])}\n".encode("ascii")


class Ledger:
    """The lines of a run, in order.

    Args:
        path: Its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._saved, self._size, self._crc = 0, 0, 0  # entries and bytes in the file, and the bytes' CRC-32

    def note(self, rows: Iterable[Mapping[str, Any]], lines: Iterable[bytes]) -> None:
        """Takes up rows and the lines that they were written as."""
        for row, line in zip(rows, lines, strict=True):
            self.entries.append(Entry(zlib.crc32(line), str(row["measured_at"]), str(row["case_id"])))

    def save(self) -> dict[str, Any]:
        """Appends what is new to the file.

        Returns:
            What a checkpoint keeps of it: tells the file as it is now from every other.

        Raises:
            CannotWrite: The disk is full or the folder cannot be written.
        """
        data = b"".join(entry.line() for entry in self.entries[self._saved :])
        if data or not self._size:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("r+b" if self.path.exists() else "w+b") as file:
                    file.truncate(self._size)
                    file.seek(self._size)
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
        self._saved, self._size = len(self.entries), self._size + len(data)
        self._crc = zlib.crc32(data, self._crc)
        return {"bytes": self._size, "crc": self._crc}

    def adopt(self, results: Path) -> None:
        """Takes up the lines of a file that no checkpoint vouches for, as they are."""
        for row, line in zip(read_rows(results), _lines(results), strict=False):
            self.note([row], [line])

    def restore(self, path: Path, card: Any) -> None:
        """Takes back what a checkpoint vouches for, without rows of the end, which is measured again.

        Args:
            path: The file beside that checkpoint, which may be another run's.
            card: What `save` gave.

        Raises:
            KeditError: The file is missing, shorter or other than the checkpoint says, or the card is no card.
        """
        if not isinstance(card, dict) or not all(type(card.get(name)) is int for name in ("bytes", "crc")):
            raise KeditError(f"the checkpoint beside {path} is damaged: it does not say which result lines are its")
        try:
            with path.open("rb") as file:
                data = file.read(max(card["bytes"], 0))
        except OSError as error:
            raise KeditError(f"{path} cannot be read: {error.strerror}") from None
        if len(data) != card["bytes"] or zlib.crc32(data) != card["crc"]:
            raise KeditError(f"{path} is not what the checkpoint beside it vouches for")
        size = 0
        for line in data.splitlines(keepends=True):
            crc, _, rest = line.partition(b" ")
            measured_at, case = json.loads(rest)
            if measured_at == "end":
                break
            self.entries.append(Entry(int(crc, 16), measured_at, case))
            size += len(line)
        if path.resolve() == self.path.resolve():  # else all of it is written anew
            self._saved, self._size, self._crc = len(self.entries), size, zlib.crc32(data[:size])


@dataclass
class Found:
    """What is in a results file, held against a ledger.

    Attributes:
        kept: Where the lines of the ledger are that are there, in its order: their first byte, and their length.
        lost: Those that are not there.
        doubled: Numbers of lines that are there more than once, from 1.
        foreign: Numbers of lines that are none of the ledger's: altered, cut short, written later or by another run.
    """

    kept: list[tuple[int, int]]
    lost: list[Entry]
    doubled: list[int]
    foreign: list[int]

    @property
    def right(self) -> bool:
        """Whether the file holds what the ledger says, and nothing else."""
        return not (self.lost or self.doubled or self.foreign)


def compare(path: Path, entries: list[Entry]) -> Found:
    """Holds a results file, which need not exist, against a ledger, by the checksums of its lines."""
    places: defaultdict[int, deque[int]] = defaultdict(deque)
    for index, entry in enumerate(entries):
        places[entry.crc].append(index)
    there: dict[int, tuple[int, int]] = {}
    doubled, foreign, start = [], [], 0
    for number, line in enumerate(_lines(path), 1):
        known = places.get(zlib.crc32(line))
        if known is None:
            foreign.append(number)
        elif known:
            there[known.popleft()] = (start, len(line))
        else:
            doubled.append(number)
        start += len(line)
    lost = [entry for index, entry in enumerate(entries) if index not in there]
    return Found([there[index] for index in sorted(there)], lost, doubled, foreign)


def put_right(path: Path, source: Path, found: Found) -> None:
    """Writes the lines of `source` that were found, in the ledger's order, to `path`, replacing it in one step.

    Where lines were lost or altered, what was there stays in `results.damaged.jsonl`.

    Raises:
        CannotWrite: The disk is full or the folder cannot be written.
    """
    partial, own = path.with_suffix(".partial"), path.exists() and path.resolve() == source.resolve()
    with writing(path):
        if found.lost and own:
            shutil.copyfile(source, path.with_suffix(".damaged.jsonl"))
        with partial.open("wb") as file:
            if found.kept:
                with source.open("rb") as lines:
                    for start, length in found.kept:
                        lines.seek(start)
                        file.write(lines.read(length))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def told(path: Path, found: Found, entries: list[Entry]) -> list[str]:
    """What is to be said of a file that was compared: nothing of lines that follow those of the ledger."""
    said = []
    if found.lost:
        altered = [n for n in found.foreign if n <= len(entries)]
        which = f" (not what the run wrote: line {some(altered)})" if altered else ""
        said.append(
            f"{path}: {len(found.lost)} of {len(entries)} lines are lost, cut or altered{which}: {some(found.lost)}. "
            "Their rows cannot be had again: the summary is without them"
        )
    if found.doubled:
        said.append(f"{path}: doubled lines are left out: line {some(found.doubled)}")
    return said


def some(names: Iterable[object], most: int = 5) -> str:
    """The first of some names, and how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_dir():
        raise KeditError(f"{path} is a folder, and results are kept in a file of that name; move it away")
    if path.exists():
        with path.open("rb") as file:
            yield from file
