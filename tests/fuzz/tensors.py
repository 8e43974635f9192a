"""Changes of named tensors: renamed, dropped, of another type or shape, with values that no number should have."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from tests.fuzz.mutate import ODD, misspelt

DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
PLACES = ("0", "-1", "x", "9" * 5000, "1/2", "\u0663", "")
NAMES = ("left", "right", "bias", "slices.index", "0/down", "0/read", "0/x", "0/self")
NUMBERS = (float("nan"), float("inf"), float("-inf"), 1e38, -1.0, 0.0, 1e-45)


def retensored(tensors: dict[str, Tensor], chance: Random) -> tuple[dict[str, Tensor], str]:
    """The same tensors but for one change, and what that was."""
    tensors = dict(tensors)
    name = chance.choice(list(tensors))

    def rename() -> str:
        head, _, tail = name.rpartition("/")
        new = chance.choice(
            [
                misspelt(name, chance),
                f"{head}/{misspelt(tail, chance)}",
                f"{misspelt(head, chance)}/{tail}",
                f"{head}/{chance.choice(PLACES)}/{tail}",
                f"{head}/{chance.choice(NAMES)}",
                tail,
                "/",
                "lm_head/left",
                chance.choice(ODD),
            ]
        )
        new = new.encode("utf-8", "replace").decode()  # safetensors has no other names
        tensors[new] = tensors.pop(name)
        return f"renamed to {new[:60]!r}"

    def drop() -> str:
        del tensors[name]
        return "dropped"

    def retype() -> str:
        dtype = chance.choice(DTYPES)
        tensors[name] = tensors[name].to(dtype)
        return f"as {dtype}"

    def reshape() -> str:
        tensor = tensors[name]
        shapes: list[Callable[[], Tensor]] = [
            lambda: tensor.reshape(-1),
            lambda: tensor.unsqueeze(0),
            lambda: tensor.new_zeros(()),
            lambda: tensor.new_zeros((0,)),
            lambda: tensor.new_zeros((*tensor.shape, 2)),
            lambda: torch.cat([tensor, tensor]) if tensor.ndim else tensor.reshape(1, 1),
            lambda: tensor[:-1] if tensor.ndim else tensor.reshape(1),
            lambda: tensor.T if tensor.ndim == 2 else tensor.reshape(1, -1),
            lambda: tensor.new_zeros((0, *tensor.shape[1:])),
        ]
        tensors[name] = chance.choice(shapes)().contiguous()
        return f"of shape {list(tensors[name].shape)} instead of {list(tensor.shape)}"

    def renumber() -> str:
        tensor, number = tensors[name].clone(), chance.choice(NUMBERS)
        if not tensor.is_floating_point():
            number = chance.choice([-1, 0, 1, 2**24, torch.iinfo(tensor.dtype).max])
        if tensor.numel():
            tensor.view(-1)[chance.randrange(tensor.numel())] = number
        tensors[name] = tensor
        return f"holds {number}"

    def copied() -> str:
        other = chance.choice(list(tensors))
        tensors[name] = tensors[other].clone()
        return f"is that of {other}"

    def added() -> str:
        tensors[f"{name}x"] = tensors[name].clone()
        return "twice, the second time with an x"

    change = chance.choice(
        [rename, rename, drop, retype, retype, reshape, reshape, renumber, renumber, copied, added]
    )()
    return tensors, f"{name}: {change}"
