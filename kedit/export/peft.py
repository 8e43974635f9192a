"""A delta as a LoRA adapter folder of PEFT, which loads it without kedit.

A factor of kedit is one of PEFT's matrices (scaling 1), so nothing is approximated. What adds to no matrix has no
place in such a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit.delta.biases import BiasChange, bias
from kedit.delta.change import Change, WeightChange
from kedit.delta.delta import Delta
from kedit.errors import KeditError
from kedit.export.folder import check_free, new_folder
from kedit.export.low_rank import factors_of, most_directions
from kedit.export.measure import efficacy_of
from kedit.export.model_card import Exported, base_name, write_card
from kedit.export.requests import check_same_model, check_unedited
from kedit.model.lm import LM

TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_INSTEAD = "export_hf (kedit delta export --to hf) keeps it"


@dataclass(frozen=True)
class Adapter:
    """What PEFT adds to one linear map: `y + b (a x) + bias`.

    Attributes:
        a: `[r, d_in]`, float32.
        b: `[d_out, r]`, float32.
        bias: `[d_out]`, float32; None where the bias stays.
    """

    a: Tensor
    b: Tensor
    bias: Tensor | None

    @property
    def rank(self) -> int:
        """Rows of `a`."""
        return len(self.a)


def export_peft(delta: Delta, lm: LM, folder: Path | str, card: Mapping[str, Any]) -> Path:
    """Write a delta as a PEFT folder: `PeftModel.from_pretrained(base, folder)` is the edited model.

    Every low-rank change is exact in float32: factors are PEFT's matrices, `lora_alpha` is the rank. A whole matrix is
    exported where it has few lines or directions.

    Args:
        delta: What to write.
        lm: The model that it changes, unedited.
        folder: Made here; must not exist, or be empty.
        card: The delta's card, as `save_delta` gets it: the model card says it.

    Returns:
        The folder.

    Raises:
        KeditError: PEFT cannot hold the delta (a pathway, a codebook, texts before prompts, any parameters, a matrix of
            high rank), it is of another model, or the model carries an edit already.
        CannotWrite: The folder cannot be written.
    """
    check_free(folder)
    check_same_model(card, lm)
    check_unedited(lm)
    adapters = adapters_of(delta, lm)
    by_path = {path: adapter.rank for path, adapter in adapters.items()}
    settings = _settings(by_path, any(adapter.bias is not None for adapter in adapters.values()))
    modules = delta.modules(lm.model)
    if any(isinstance(modules[path], Conv1D) for path in adapters):
        settings["fan_in_fan_out"] = True
    with new_folder(folder) as partial:
        save_file(_tensors(adapters), partial / TENSORS, metadata={"format": "pt"})
        _config(lm, settings).save_pretrained(str(partial))
        efficacy = efficacy_of(lm, delta, card)
        write_card(partial, Exported("peft", lm, delta, card, "float32", Path(folder), efficacy=efficacy))
    return Path(folder)


def adapters_of(delta: Delta, lm: LM) -> dict[str, Adapter]:
    """Module path -> what PEFT adds there.

    Raises:
        KeditError: As `export_peft`.
    """
    found: dict[str, Adapter] = {}
    modules = delta.modules(lm.model)
    for path, changes in delta.items():
        for change in changes:
            _check_kind(path, change)
        _check_alone(lm.model, path, modules[path])
        weights = [change for change in changes if isinstance(change, WeightChange)]
        biases = [change.change for change in changes if isinstance(change, BiasChange)]
        factors = factors_of(weights) if weights else None
        if weights and factors is None:
            shape = weights[0].shape
            raise KeditError(
                f"the change of {path} is a whole matrix of {shape[0]} x {shape[1]} of a rank above "
                f"{most_directions(shape)}: a LoRA of it would be larger than itself; {_INSTEAD}"
            )
        if factors is not None and factors.rank:
            a, b = factors.right, factors.left
        elif biases:  # of the bias alone
            d_out, d_in = len(biases[0]), _inputs(modules[path])
            a, b = torch.zeros(1, d_in), torch.zeros(d_out, 1)
        else:
            continue
        found[path] = Adapter(a, b, biases[0] if biases else None)
    if not found:
        raise KeditError("this delta changes nothing: there is no adapter to export")
    if any(adapter.bias is not None for adapter in found.values()):
        for path in found:
            if bias(modules[path]) is None:
                raise KeditError(
                    f"this delta changes biases, and {path} has none: PEFT could not merge such an adapter; {_INSTEAD}"
                )
    return found


def _check_kind(path: str, change: Change) -> None:
    """Refuse what is no matrix and no bias of a linear map."""
    if isinstance(change, WeightChange | BiasChange):
        return
    why = "changes more than matrices of linear maps" if change.in_weights else "is no weight"
    raise KeditError(
        f"{path or 'the whole model'}: its change, of kind {change.kind!r}, {why}, which a LoRA cannot hold; {_INSTEAD}"
    )


def _check_alone(model: nn.Module, path: str, module: nn.Module) -> None:
    """Refuse a matrix that another module shares, as a tied head does: PEFT would change the one and not the other."""
    shared = [
        other
        for other, one in model.named_modules()
        if one is not module and any(p is module._parameters.get("weight") for p in one._parameters.values())
    ]
    if shared:
        raise KeditError(
            f"{path} shares its weight with {shared[0]}: a LoRA would change one of them alone; {_INSTEAD}"
        )


def _inputs(module: nn.Module) -> int:
    return module.nx if isinstance(module, Conv1D) else int(module.get_parameter("weight").shape[1])


def _settings(ranks: Mapping[str, int], with_bias: bool) -> dict[str, Any]:
    """Options of PEFT's LoraConfig by which each module has its own rank and the scaling 1."""
    rank = max(ranks.values())
    others = {path: own for path, own in ranks.items() if own != rank}
    settings: dict[str, Any] = {"r": rank, "lora_alpha": rank, "target_modules": list(ranks), "lora_bias": with_bias}
    return settings | {"rank_pattern": dict(others), "alpha_pattern": dict(others)}


def _config(lm: LM, settings: Mapping[str, Any]) -> Any:
    from peft import LoraConfig  # here: it takes a second to import

    config = LoraConfig(
        **settings,
        base_model_name_or_path=base_name(lm),
        task_type="CAUSAL_LM",
        inference_mode=True,
        lora_dropout=0.0,
        bias="none",
    )
    config.target_modules = list(settings["target_modules"])  # PEFT makes a set of it, whose order is chance
    return config


def _tensors(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """By the names under which PEFT looks for them."""
    any_bias = any(adapter.bias is not None for adapter in adapters.values())
    tensors = {}
    for path, own in adapters.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = own.a
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = own.b
        if any_bias:
            tensors[f"{_PREFIX}{path}.lora_B.bias"] = own.b.new_zeros(len(own.b)) if own.bias is None else own.bias
    # cloned: safetensors refuses tensors that share memory
    return {k: t.detach().cpu().float().clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}
