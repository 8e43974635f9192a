"""What the tests of the files in configs/ share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any

from kedit.cli.commands.fit import parsed
from kedit.sweeps.spec import Task, read_sweep
from tests.support.paths import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
REFERENCES = sorted((ROOT / "configs" / "reference").glob("*.yaml"))
PAC_CONFIGS = [file for file in CONFIGS if file.stem.startswith("pac_")]
CONTROLS: dict[str, dict[str, Any]] = {
    "random": {"trace.node_source": "random"},
    "full": {"trace.node_source": "all"},
    "lambda0": {"contrast.weight": 0.0},
    "lambda0_lr": {"contrast.weight": 0.0, "train.lr": None},
}  # arms of slurm/sweeps/pac_controls.yaml: how each differs from PAC; the learning rate is 1.41 times its
PAC_SWEEP = ROOT / "slurm" / "sweeps" / "pac_controls.yaml"
DATA_OF_PAC = ("zsre", "counterfact")

Tree = dict[str, Any]


def leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every option of a configuration with its value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def arms() -> tuple[Task, ...]:
    """The arms of PAC's sweep, whose configurations are looked up from the working directory."""
    with chdir(ROOT):
        return read_sweep(PAC_SWEEP).tasks


def whole(file: Path) -> Tree:
    """A configuration with every option that it leaves out."""
    return tree_of("--config", str(file))


def tree_of(*words: str) -> Tree:
    """Every option of a run of `kedit fit` with these words."""
    return json.loads(_parsed(words))


@cache
def _parsed(words: tuple[str, ...]) -> str:
    tree = parsed(list(words)).as_dict()
    tree.pop("config")
    return json.dumps(tree, default=str)
