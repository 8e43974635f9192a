"""Which weights can be edited: plain floating-point matrices `[out_features, in_features]`.

A quantised matrix holds codes: a delta added to them is another change than the one that was computed, and nobody would
see it. So kedit refuses such a model where it is loaded or wrapped, whoever quantised it. float32, bfloat16 and float16
may be mixed; float64, which a model in memory can have, loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kedit.errors import KeditError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INSTEAD = "Load the unquantised model, or de-quantise this one and save that (docs/loading.md)"


def check_config(config: PretrainedConfig, name: str) -> None:
    """Refuse a model whose config says that its weights are quantised.

    Raises:
        KeditError: It does; names the model and the kind.
    """
    for part in (config, config.get_text_config()):
        for key in ("quantization_config", "compression_config"):
            if found := getattr(part, key, None):
                given = found if isinstance(found, dict) else vars(found)
                kind = given.get("quant_method", "")
                kind = str(kind.value if isinstance(kind, Enum) else kind) or type(found).__name__
                raise KeditError(
                    f"{name}: its weights are quantised ({kind}, says its {key}); kedit edits float32, "
                    f"bfloat16 or float16. {INSTEAD}"
                )


def check_plain(model: PreTrainedModel, name: str) -> None:
    """Refuse a model with a linear map that kedit could edit, or whose outputs it would trust, but that holds codes.

    Raises:
        KeditError: Names the model, the module, and the way out.
    """
    check_config(model.config, name)
    for path, module in model.named_modules():
        why = unfit(module) if isinstance(module, (nn.Linear, Conv1D)) else _codes(module)
        if why is not None:
            raise KeditError(f"{name}: {path} ({type(module).__name__}) cannot be edited: {why}. {INSTEAD}")


def check_left_over(model: PreTrainedModel, left_over: Iterable[str], name: str) -> None:
    """Refuse weights with more to a linear map than was loaded of it: the scales of codes that were read as numbers.

    Args:
        model: As loaded.
        left_over: Names of the tensors in its files that the model has no place for.
        name: Of the model.

    Raises:
        KeditError: Names the model and a tensor.
    """
    modules = dict(model.named_modules())
    for key in sorted(left_over):
        if isinstance(modules.get(key.rpartition(".")[0]), (nn.Linear, Conv1D)):
            raise KeditError(f"{name}: its files hold {key}, which a plain linear map has not (quantised?). {INSTEAD}")


def unfit(module: nn.Linear | Conv1D) -> str | None:
    """Why the weight of a linear map cannot be added to; None where it can.

    Its type counts too: a subclass of Tensor may call itself bfloat16 and hold codes.
    """
    weight, transposed = module.weight, isinstance(module, Conv1D)
    if type(weight) is not nn.Parameter:
        return f"its weight is no plain parameter but a {type(weight).__name__} ({_short(weight.dtype)})"
    if weight.dtype not in FLOATS:
        return f"its weight is {_short(weight.dtype)}"
    shape = (module.nx, module.nf) if transposed else (module.out_features, module.in_features)
    if tuple(weight.shape) != shape:
        return f"its weight has the shape {tuple(weight.shape)}, not {shape}"
    return None


def _codes(module: nn.Module) -> str | None:
    """What a module that is no linear map of torch holds in the place of plain weights; None where there is nothing."""
    is_map = hasattr(module, "in_features")
    for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        matrix = isinstance(tensor, nn.Parameter) and tensor.dim() > 1
        if tensor.dtype not in FLOATS and (is_map or matrix or "weight" in key):
            return f"its {key} is {_short(tensor.dtype)}"
    return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
