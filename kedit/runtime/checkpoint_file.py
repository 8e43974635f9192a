"""A checkpoint as a file: read whole or not at all, and whether what kedit keeps in it has the shape it must have.

Lightning writes it (`torch.save`). kedit adds a checksum of everything in it, and goes on from no file without one: a
run can be begun anew, and what a checkpoint holds decides which bits it ends with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kedit.errors import KeditError
from kedit.runtime import checksum

CHECKSUM = "kedit_checksum"

LIGHTNING = {"epoch": int, "global_step": int, "pytorch-lightning_version": str, "state_dict": dict, "loops": dict}
OWN = {"edits_done": int, "method": dict, "run": dict}
ENTRY = {"deltas": list, "outcomes": list, "state": dict}


def seal(content: dict[str, Any]) -> None:
    """Adds the checksum of a checkpoint that is about to be written."""
    content.pop(CHECKSUM, None)
    content[CHECKSUM] = checksum.of_content(content)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds.

    Raises:
        KeditError: There is none, it is truncated or damaged, it is not kedit's, or parts of it are missing or of
            another type.
    """
    if not path.is_file():
        raise KeditError(f"there is no file {path}")
    if (damage := checksum.zip_damage(path)) is not None:
        raise KeditError(f"{path} is {damage}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except checksum.UNREADABLE as error:
        raise KeditError(f"{path} is damaged: {checksum.first_line(error)}") from None
    if not isinstance(found, dict) or not isinstance(found.get("kedit"), dict):
        raise KeditError(f"{path} was not written by kedit")
    if CHECKSUM not in found:
        raise KeditError(f"{path} holds no checksum: go on with the older kedit that wrote it, or begin the run anew")
    theirs = found.pop(CHECKSUM)
    if theirs != checksum.of_content(found):
        raise KeditError(f"{path} is damaged: its checksum is wrong")
    _check(path, found, LIGHTNING, "")
    _check(path, found["kedit"], OWN, "kedit.")
    if found["kedit"]["edits_done"] < 0:
        raise KeditError(f"{path} is damaged: kedit.edits_done is {found['kedit']['edits_done']}")
    return found


def check_entry(path: Path, entry: Any) -> dict[str, Any]:
    """What a checkpoint or its journal holds of some edits, which it gives back.

    Raises:
        KeditError: It is something else.
    """
    if not isinstance(entry, dict):
        raise KeditError(f"{path} is damaged: edits are {type(entry).__name__} where dict is wanted")
    _check(path, entry, ENTRY, "edits.")
    for outcome in entry["outcomes"]:
        info, error = outcome if isinstance(outcome, tuple | list) and len(outcome) == 2 else (None, None)
        if not isinstance(info, dict) or not isinstance(error, str | None):
            raise KeditError(f"{path} is damaged: edits.outcomes hold something else than figures and errors")
    return entry


def _check(path: Path, found: Mapping[Any, Any], wanted: Mapping[str, type], where: str) -> None:
    for name, kind in wanted.items():
        if name not in found:
            raise KeditError(f"{path} is damaged: it has no {where}{name}")
        if not isinstance(found[name], kind) or isinstance(found[name], bool):
            had = type(found[name]).__name__
            raise KeditError(f"{path} is damaged: {where}{name} is {had} where {kind.__name__} is wanted")
