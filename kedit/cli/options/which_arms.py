"""The arms that a user names: a sweep file, the folder of a sweep, or folders of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from kedit.cli.commands.sweep import open_sweep
from kedit.errors import KeditError
from kedit.runtime.option_values import check_path
from kedit.sweeps.arms import Runs, of_folders, of_sweep
from kedit.sweeps.folder import PLAN

WHICH = MappingProxyType(
    {
        "compare": "A sweep file, the folder of a sweep, or folders of two runs or more.",
        "report": "A sweep file, the folder of a sweep, or folders of runs.",
    }
)
"""Command -> what can be named."""
DONE = MappingProxyType({"compare": "compared", "report": "reported"})


def sweep_named(names: Sequence[str]) -> bool:
    """Whether what a user named is a sweep, not runs."""
    paths = [Path(name) for name in names]
    return len(paths) == 1 and (not paths[0].is_dir() or (paths[0] / PLAN).exists())


def runs_named(names: Sequence[str], runs: str | None, seeds: bool, command: str) -> Runs:
    """The finished runs of what a user named.

    Args:
        names: What stands after the command.
        runs: The option `--runs`: the folder of a sweep file's results.
        seeds: Put the seeds of a setting together.
        command: For messages: `compare`.

    Raises:
        KeditError: Nothing was named, or no such sweep or run.
    """
    if not names:
        raise KeditError(
            f"what is to be {DONE[command]}? {WHICH[command]}\nFor instance: kedit {command} slurm/sweeps/smollm2.yaml"
        )
    for name in names:
        check_path("sweep", name)
    if sweep_named(names):
        folder = open_sweep(names[0], runs)
        if not (folder.path / PLAN).exists():
            raise KeditError(
                f"there are no results in {folder.path}, where kedit sweep {names[0]} writes them\n"
                f"Where it was given --out DIR: kedit {command} DIR, or --runs DIR"
            )
        return of_sweep(folder, seeds)
    if runs is not None:
        raise KeditError("runs: it goes with a sweep file; folders of runs are named one after another")
    return of_folders([Path(name) for name in names], seeds)
