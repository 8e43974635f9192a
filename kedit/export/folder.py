"""An exported folder: it appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from kedit.errors import KeditError
from kedit.runtime.file_modes import as_umask
from kedit.runtime.files import make_folder, writing

RECORD = "edit_card.json"
"""What was exported, for programs: `kedit.export.model_card` writes it."""


@contextmanager
def new_folder(folder: Path | str, option: str = "out") -> Iterator[Path]:
    """Inside, an empty folder to write to; afterwards it is `folder`. After an error nothing is left.

    Args:
        folder: Where it will be: must not be there yet, or be empty.
        option: How an error calls it.

    Raises:
        KeditError: There is something.
        CannotWrite: The disk is full, or nothing can be written there.
    """
    folder = Path(folder)
    check_free(folder, option)
    make_folder(folder.absolute().parent, option)
    with writing(folder), tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".kedit-") as scratch:
        partial = Path(scratch) / "folder"
        partial.mkdir()
        try:
            yield partial
        except SafetensorError as error:  # its only trouble with these tensors is the disk
            raise OSError(str(error)) from error
        for file in partial.rglob("*"):
            if file.is_file():
                as_umask(file)
        os.replace(partial, folder)


def check_free(folder: Path | str, option: str = "out") -> None:
    """Refuse a place where something is already.

    Raises:
        KeditError: It is a file, or a folder with something in it.
    """
    folder = Path(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        what = "is a folder that is not empty" if folder.is_dir() else "is a file"
        raise KeditError(f"{option}: {folder} {what}; nothing was written. Name a new folder")
    above = next((parent for parent in folder.absolute().parents if parent.exists()), folder)
    if not above.is_dir():
        raise KeditError(f"{option}: {above} is a file: {folder} cannot be in it")
