"""Writing files: replaced in one step, and an error of the disk's is one line that names the path."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedit.errors import CannotWrite

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def write_text(path: Path, text: str) -> None:
    """Write a text file, replacing it in one step."""
    partial = path.with_suffix(".partial")
    with writing(path, partial):
        partial.write_text(text, encoding="utf-8")
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


def check_writable(folder: Path, option: str, said: str | None = None) -> None:
    """Whether a folder can be written, or made where it will be; leaves nothing behind.

    Args:
        folder: It need not be there.
        option: How an error calls it.
        said: The folder as the user gave it.

    Raises:
        CannotWrite: It cannot; says why.
    """
    above = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not above.is_dir():
        raise CannotWrite(f"{option}: {above} is a file; give a folder")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".kedit-", dir=above))
    except OSError as error:
        raise CannotWrite(f"{option}: {said or folder} cannot be written: {error.strerror}") from None
