"""What the tests of the files in configs/ share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.support.paths import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PAC_CONFIGS = [file for file in CONFIGS if file.stem.startswith("pac_")]
CONTROLS: dict[str, dict[str, Any]] = {
    "_random": {"trace.node_source": "random"},
    "_full": {"trace.node_source": "all"},
    "_lambda0": {"contrast.weight": 0.0},
    "_lambda0_lr": {"contrast.weight": 0.0, "train.lr": None},
}  # of PAC: how each differs from configs/pac_smollm2.yaml; the learning rate is 1.41 times its
DATA_OF_PAC = ("zsre", "counterfact")

Tree = dict[str, Any]


def leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every option of a configuration with its value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value
