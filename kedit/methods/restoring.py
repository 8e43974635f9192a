"""What a run takes from the checkpoint that it goes on from, and whether it is this run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedit.errors import KeditError
from kedit.journal import read_journal


def read_state(checkpoint: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """kedit's part of a checkpoint, with the edits that are in the journal beside it.

    Args:
        checkpoint: As Lightning read it.
        identity: What the run that it was written by must share with this one.
        path: Its file.

    Returns:
        `edits_done`, `edits` (what each entry of the journal holds), `method`, `run`.

    Raises:
        KeditError: It was written by something else or by another run, or its journal is missing or damaged.
    """
    state = checkpoint.get("kedit")
    if state is None:
        raise KeditError("this checkpoint was not written by kedit; start without --ckpt_path")
    theirs = {"processes": 1} | state["run"]  # there were no others once
    for key, value in identity.items():
        if value != theirs.get(key):
            raise KeditError(
                f"this checkpoint is of another run: its {key} is {theirs.get(key)!r}, here it is {value!r}"
            )
    if "journal" in state:
        journal = state["journal"]
        return state | {"edits": read_journal(path.parent / journal["file"], journal["bytes"])}
    if "edits" not in state:
        raise KeditError("this checkpoint was written by an older kedit; start the run anew")
    return dict(state)
