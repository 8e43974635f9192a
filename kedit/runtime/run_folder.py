"""The folder of a run: results as JSON lines, appended and flushed; what was interrupted is cut off cleanly."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedit.errors import KeditError
from kedit.runtime.files import writing

RESULTS = "results.jsonl"
RUN = "run.json"
CONFIG = "config.yaml"
SUMMARY = "summary.json"
LOGS = "logs"
CHECKPOINT = Path("checkpoints") / "last.ckpt"


def finished(folder: Path) -> bool:
    """Whether the run in `folder` came to its end."""
    return (folder / SUMMARY).exists()


def append_rows(path: Path, rows: list[dict[str, Any]]) -> list[bytes]:
    """Append JSON lines and flush them to the disk.

    Returns:
        The lines.

    Raises:
        KeditError: The disk is full or the folder cannot be written; what was there stays.
    """
    lines = [(json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows]
    with writing(path), path.open("ab") as file:
        file.write(b"".join(lines))
        file.flush()
        os.fsync(file.fileno())
    return lines


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a results file; a last line that a kill or a full disk cut short is left out.

    Raises:
        KeditError: A line is damaged.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                raise KeditError(f"{path}: line {number} is damaged") from None


def keep_rows(path: Path, batches: int, edits: int) -> None:
    """Cut a results file back to what a checkpoint vouches for.

    Args:
        path: The file.
        batches: Edit batches that are done.
        edits: Records in them.
    """
    if not path.exists():
        return
    partial = path.with_suffix(".partial")
    with writing(partial):
        with partial.open("w", encoding="utf-8") as file:
            for row in read_rows(path):
                if row["measured_at"] != "end" and row["batch"] < batches and row.get("edits", 0) <= edits:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
