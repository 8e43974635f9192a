"""The run that a user names, by its folder or its name."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from kedit.errors import KeditError, shown
from kedit.results.stored_run import is_run

RUNS = Path("runs")
NAMES = 8  # of runs or records that a message names


def run_folder(name: str | None) -> Path:
    """The folder of a run.

    Args:
        name: Its path, or its name in `./runs`; None where the user gave none.

    Raises:
        KeditError: There is none; names those that are near.
    """
    known = sorted(path.parent.name for path in RUNS.glob("*/run.json"))
    if name is None:
        raise KeditError(f"run: which one? {f'There are {some(known)}' if known else './runs holds none'}")
    given = Path(os.path.expanduser(name))
    for folder in (given, RUNS / name):
        if is_run(folder):
            return folder
    if os.path.isfile(given):
        raise KeditError(f"run: {name} is a file; give the folder of a run, e.g. {given.parent}")
    if os.path.isdir(given):
        inside = sorted(str(path.parent) for path in given.glob("*/run.json"))
        if inside:
            raise KeditError(f"run: {name} is a folder of runs; give one of them: {some(inside)}")
        log_file = "; its log.txt says how far it came" if (given / "log.txt").exists() else ""
        raise KeditError(f"run: the folder {name} holds no run.json, so no run has begun in it{log_file}")
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are {some(known)}" if known else "./runs holds none"
    raise KeditError(f"run: there is no run {shown(name)} here; {hint}")


def some(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:NAMES]) + (f" and {len(names) - NAMES} more" if len(names) > NAMES else "")
