"""Processes of one run before they can talk to each other: who decides, and how the others learn what was decided.

Lightning starts the other processes of a node by running the command again; `srun` and `torchrun` start all of them.
Nothing here imports torch: the command line asks before anything is loaded.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kedit.errors import KeditError

DECIDED = "KEDIT_DECIDED"
"""Environment variable in which a process leaves what it decided to those that it starts."""

PATIENCE = 300.0  # seconds to wait for the first process


def number() -> int:
    """The rank that this process will have; 0 in a run of one."""
    if (outside := _outside()) is not None:
        return outside[0]
    return int(os.environ.get("LOCAL_RANK", "0")) if DECIDED in os.environ else 0


def agree(decide: Callable[[], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What the first process decides; the others get to know it.

    Args:
        decide: Gives JSON-able values; called in the first process alone.
        folder: One that all processes see, for a note where they were started by something else; it is made.

    Raises:
        KeditError: The first process has left no note, or could not decide.
    """
    if (connected := sys.modules.get("torch.distributed")) is not None and connected.is_initialized():
        from kedit.runtime import distributed

        return distributed.from_first(decide)
    outside = _outside()
    if outside is None:
        if number() > 0:
            return json.loads(os.environ[DECIDED])
        decided = decide()
        os.environ[DECIDED] = json.dumps(decided)
        return decided
    rank, run = outside
    note = folder / f".decided-{run}.json"
    if rank > 0:
        return _wait(note)
    try:
        decided = decide()
    except KeditError as error:
        _leave(note, {"error": str(error)})
        raise
    _leave(note, decided)
    return decided


def forget(folder: Path) -> None:
    """Takes away what `agree` left behind, in the first process."""
    if number() == 0:
        os.environ.pop(DECIDED, None)
    if (outside := _outside()) is not None and outside[0] == 0:
        (folder / f".decided-{outside[1]}.json").unlink(missing_ok=True)


def _outside() -> tuple[int, str] | None:
    """Rank and the run's name where `srun` or `torchrun` started several processes."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env and int(env["WORLD_SIZE"]) > 1:
        again = env.get("TORCHELASTIC_RESTART_COUNT", "0")
        return int(env["RANK"]), f"{env['TORCHELASTIC_RUN_ID']}-{env['MASTER_PORT']}-{again}"
    if int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in env:
        again = env.get("SLURM_RESTART_COUNT", "0")
        return int(env["SLURM_PROCID"]), f"{env['SLURM_JOB_ID']}-{env['SLURM_STEP_ID']}-{again}"
    return None


def _leave(note: Path, decided: dict[str, Any]) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    partial = note.with_suffix(".partial")
    partial.write_text(json.dumps(decided), encoding="utf-8")
    partial.replace(note)


def _wait(note: Path) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE
    while not note.exists():
        if time.monotonic() > end:
            raise KeditError(f"run.root: the first process has left no note {note}; do all nodes see this folder?")
        time.sleep(0.2)
    decided = json.loads(note.read_text(encoding="utf-8"))
    if "error" in decided:
        raise KeditError(decided["error"])
    return decided
