"""Which linear maps of a layer are trained, by the words of `matrices`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from kedit.errors import KeditError, shown
from kedit.model.architecture import weight
from kedit.model.lm import LM

ROLES = ("mlp_out", "mlp_in", "mlp", "attn", "layer")


def check_matrices(matrices: Sequence[str] | None) -> None:
    """Refuses an empty list, and a map that is named twice.

    Raises:
        KeditError: Names the option.
    """
    if matrices is None:
        return
    if not matrices or any(not word for word in matrices):
        raise KeditError(f"model.matrices is empty; name roles ({', '.join(ROLES)}) or maps of a layer")
    if len(set(matrices)) < len(matrices):
        raise KeditError(f"model.matrices names a part twice: {shown(list(matrices))}")


def trained_paths(lm: LM, layers: Sequence[int], matrices: Sequence[str]) -> list[str]:
    """Paths of the maps that are trained, in the model's order.

    Args:
        lm: The model.
        layers: The layers.
        matrices: `mlp_out` (the down projection), `mlp_in` (gate and up), `mlp` (both), `attn` (the maps of the
            attention block), `layer` (all maps of the layer), or the path of a map in its layer, as `attn.c_attn`.

    Raises:
        KeditError: A layer has no such map.
    """
    found: list[str] = []
    for layer in layers:
        block = lm.arch.layer(lm.model, layer)
        maps = [name for name, module in block.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
        chosen = {name for word in matrices for name in _named(lm, maps, word)}
        for name in maps:
            if name in chosen:
                weight(block.get_submodule(name))  # refuses quantised ones
                found.append(f"{lm.arch.family.layers}.{layer}.{name}")
    return found


def _named(lm: LM, maps: list[str], word: str) -> list[str]:
    family = lm.arch.family
    parts = {"mlp_out": [family.mlp_out], "mlp_in": [*family.mlp_in], "mlp": [*family.mlp_in, family.mlp_out]}
    if word in parts:
        return parts[word]
    if word == "layer":
        return maps
    names = [name for name in maps if name == word or (word == "attn" and name.startswith(f"{family.attn}."))]
    if not names:
        raise KeditError(
            f"model.matrices: there is no {shown(word)} in a layer of {lm.name}; "
            f"use {', '.join(ROLES)}, or one of {', '.join(maps)}"
        )
    return names
