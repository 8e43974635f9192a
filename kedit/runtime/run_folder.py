"""The folder of a run: results as JSON lines, appended and flushed; what was interrupted is cut off cleanly."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedit.errors import CannotWrite, KeditError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON, replacing the file in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV, with a header; floats as they are, to the last bit."""
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_figure(path: Path, figure: Figure) -> None:
    """Write a matplotlib figure as PNG, replacing the file in one step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    partial = path.with_suffix(".partial")
    with writing(path, partial):
        figure.savefig(partial, format="png")
        partial.replace(path)


def make_folder(path: Path, option: str) -> None:
    """Make a folder that a user named, with those above it.

    Raises:
        CannotWrite: It cannot be made; names the option.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(f"{option}: {path} cannot be made: {error.strerror}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file, replacing it in one step."""
    partial = path.with_suffix(".partial")
    with writing(path, partial):
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


@contextmanager
def writing(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Inside, a full disk or an unwritable folder is an error of the user's that names `path`.

    Args:
        path: What is written, under its last name.
        partial: The file that it is written to first, which an error takes away.

    Raises:
        CannotWrite: The file cannot be written.
    """
    try:
        yield
    except OSError as error:
        if partial is not None:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        raise CannotWrite(f"{path} cannot be written: {error.strerror or error}") from error
