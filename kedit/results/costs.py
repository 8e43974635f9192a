"""`costs.jsonl` of a run: what every edit took of time, and how large its change is. A line per record.

Times differ between two runs of the same bits, so they are no part of `results.jsonl`. What they mean: docs/metrics.md.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kedit.errors import KeditError
from kedit.runtime.files import write_text
from kedit.runtime.run_folder import append_rows, read_rows

COSTS = "costs.jsonl"

Line = dict[str, Any]

log = logging.getLogger(__name__)


def cost_lines(
    cases: Sequence[str], batch: int, seconds: float, cpu_seconds: float, sizes: Sequence[int | None]
) -> list[Line]:
    """The lines of an edit batch.

    Args:
        cases: Case ids of its records.
        batch: Its number.
        seconds: Wall-clock time of the edit, shared out among the records.
        cpu_seconds: CPU time, likewise.
        sizes: Bytes of every record's delta, None where the edit failed; where the batch has one delta, of that alone:
            it is shared out.
    """
    n = len(cases)
    own = list(sizes) if len(sizes) == n else [None if size is None else size / n for size in sizes for _ in cases]
    return [
        {
            "case_id": case,
            "batch": batch,
            "seconds": round(seconds / n, 6),
            "cpu_seconds": round(cpu_seconds / n, 6),
            "delta_bytes": size,
        }
        for case, size in zip(cases, own, strict=True)
    ]


class CostsFile:
    """The lines of a run.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / COSTS

    def begin(self, batches: int) -> None:
        """Cuts the file of an interrupted run back.

        Args:
            batches: Edit batches that are done; 0 in a fresh run.
        """
        kept: list[Line] = []
        if batches:
            try:
                kept = [line for line in read_rows(self._path) if line["batch"] < batches]
            except KeditError as error:
                log.warning("what the edits before took of time is forgotten: %s", error)
        if kept or self._path.exists():
            write_text(self._path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

    def append(self, lines: list[Line]) -> None:
        """Writes lines and flushes them to the disk.

        Raises:
            KeditError: The disk is full or the folder cannot be written.
        """
        append_rows(self._path, lines)


def costs_of(folder: Path) -> dict[str, Line]:
    """Case id -> its line; empty where the run is of a kedit that wrote none.

    Raises:
        KeditError: A damaged line.
    """
    return {str(line["case_id"]): line for line in read_rows(folder / COSTS)}


def delta_size(lines: Iterable[Line], regime: str) -> float | None:
    """Mean bytes of the deltas of a run whose edits do not accumulate; None where no edit was made.

    Args:
        lines: Its lines.
        regime: `single`: an edit has a delta. `batch`: an edit batch has one.
    """
    sizes: dict[Any, float] = {}
    for line in lines:
        if line["delta_bytes"] is not None:
            name = line["case_id"] if regime == "single" else line["batch"]
            sizes[name] = sizes.get(name, 0.0) + line["delta_bytes"]
    return round(sum(sizes.values()) / len(sizes), 1) if sizes else None
