"""Which linear maps of a decoder get an adapter: by their names in a layer, or the attention's query and value."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from kedit.errors import KeditError, shown
from kedit.model.architecture import check_layers, weight
from kedit.model.lm import LM

_QUERY, _VALUE = ("q_proj", "query", "wq"), ("v_proj", "value", "wv")
_JOINT = ("c_attn", "query_key_value", "qkv_proj", "wqkv")  # query, key and value in one matrix


def query_and_value(lm: LM) -> list[str]:
    """The names of the maps that make queries and values, e.g. `["q_proj", "v_proj"]`; of one that makes both.

    Raises:
        KeditError: The attention block has none of the usual names.
    """
    names = [path.rpartition(".")[2] for path in _maps(lm.arch.module(lm.model, "attn", 0))]
    for wanted in ((_QUERY, _VALUE), (_JOINT,)):
        found = [next((name for name in names if name.lower() in usual), None) for usual in wanted]
        if None not in found:
            return [name for name in found if name is not None]
    raise KeditError(
        f"model.target_modules: kedit cannot tell query and value among {', '.join(names)} in the attention of "
        f"{lm.name}; name the linear maps to adapt"
    )


def target_paths(lm: LM, names: Sequence[str], layers: Sequence[int] | None = None) -> list[str]:
    """Full paths of the linear maps to adapt, layer by layer.

    Args:
        lm: The model.
        names: The last parts of paths in a layer, e.g. `q_proj` or `mlp.c_proj`.
        layers: In these layers; None: in all.

    Raises:
        KeditError: No layer has a linear map of a name, one is quantised, or a layer does not exist.
    """
    if not names:
        raise KeditError("model.target_modules is empty: name the linear maps to adapt, or leave it out")
    chosen = range(lm.arch.n_layers) if layers is None else layers
    check_layers(lm.arch, chosen, "model.layers")
    found: dict[str, str] = {}
    unseen, known = set(names), dict[str, None]()
    for i in chosen:
        for path, module in _maps(lm.arch.layer(lm.model, i)).items():
            known[path] = None
            wanted = [name for name in names if f".{path}".endswith(f".{name}")]
            if wanted:
                weight(module)  # refuses one that cannot be edited
                found[f"{lm.arch.family.layers}.{i}.{path}"] = path
                unseen -= set(wanted)
    if unseen:
        missing = shown(next(name for name in names if name in unseen))
        raise KeditError(
            f"model.target_modules: the layers of {lm.name} have no linear map {missing}, only {', '.join(known)}"
        )
    return list(found)


def _maps(module: nn.Module) -> dict[str, nn.Module]:
    return {path: child for path, child in module.named_modules() if isinstance(child, (nn.Linear, Conv1D))}
