"""The linear maps of a feed-forward block by their roles, for methods that edit others than its output map too."""

from __future__ import annotations

from typing import Literal

from kedit.errors import KeditError
from kedit.model.lm import LM

FfnMap = Literal["gate", "up", "down"]
"""The gate, the map beside it (the only one that reads the residual stream where there is no gate), the output map."""


def has_gate(lm: LM) -> bool:
    """Whether the blocks have a gate that is a matrix of its own."""
    return len(lm.arch.family.mlp_in) > 1


def ffn_path(lm: LM, role: FfnMap, layer: int, option: str) -> str:
    """Full path of a map of a layer, e.g. `model.layers.5.mlp.gate_proj`.

    Args:
        lm: The model.
        role: Which map.
        layer: The layer.
        option: What an error calls the choice, e.g. `"model.gate_layers"`.

    Raises:
        KeditError: The model's blocks have no gate of their own.
    """
    family = lm.arch.family
    if role == "gate" and not has_gate(lm):
        raise KeditError(f"{option}: the feed-forward blocks of {lm.name} have no gate matrix of their own")
    own = {"gate": family.mlp_in[0], "up": family.mlp_in[-1], "down": family.mlp_out}[role]
    return f"{family.layers}.{layer}.{own}"
