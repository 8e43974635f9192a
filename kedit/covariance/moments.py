"""The running sum of k k^T: only its upper triangle is computed, in strips of columns.

On a GPU the products of bfloat16 and float16 keys are TF32's, which holds such numbers exactly (docs/statistics.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

STRIPS = 8  # 9/16 of the full product's work; with more of them the products get too small to be fast
ROOM = 16  # times the bytes of one layer's sums: copies of some layers, and float64 matrices while they are measured


class SecondMoment:
    """Sum over tokens of k k^T, kept as `STRIPS` strips `[width_i, d_in - start_i]`.

    Args:
        d_in: Width of the keys.
        dtype: Of products and sums; keys of lower precision are cast to it first.
        device: Where the sums live.
    """

    def __init__(self, d_in: int, dtype: torch.dtype, device: torch.device) -> None:
        self.d_in, self.dtype = d_in, dtype
        edges = [d_in * i // STRIPS for i in range(STRIPS + 1)]
        self.bounds = list(itertools.pairwise(edges))
        self.strips = [torch.zeros(b - a, d_in - a, dtype=dtype, device=device) for a, b in self.bounds]
        self.count = 0

    def add(self, keys: Tensor) -> None:
        """Add the keys `[n, d_in]` of n tokens."""
        exact = exact_products(keys)
        keys = keys.to(self.dtype)
        with exact:
            for (start, end), strip in zip(self.bounds, self.strips, strict=True):
                strip.addmm_(keys[:, start:end].T, keys[:, start:])
        self.count += len(keys)

    def mean(self) -> Tensor:
        """C, the full symmetric matrix `[d_in, d_in]`."""
        full = torch.zeros(self.d_in, self.d_in, dtype=self.dtype, device=self.strips[0].device)
        for (start, end), strip in zip(self.bounds, self.strips, strict=True):
            full[start:end, start:] = strip
        full = full.triu_().div_(max(self.count, 1))
        return full + full.triu(1).T

    def copy(self) -> SecondMoment:
        """The sums as they are now: beside these where the device has room, else in the CPU's memory."""
        return self.empty().load(self.state(), self.count)

    def empty(self) -> SecondMoment:
        """Other sums of the same shape, where `copy` keeps them."""
        device = self.strips[0].device
        size = sum(strip.nbytes for strip in self.strips)
        return SecondMoment(self.d_in, self.dtype, device if has_room(device, size) else torch.device("cpu"))

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """The strips by name, for a file."""
        return {f"{prefix}strip{i}": strip for i, strip in enumerate(self.strips)}

    def load(self, tensors: dict[str, Tensor], count: int, prefix: str = "") -> SecondMoment:
        """Take over what `state` gave, bit for bit."""
        for i, strip in enumerate(self.strips):
            strip.copy_(tensors[f"{prefix}strip{i}"])
        self.count = count
        return self


def exact_products(keys: Tensor) -> AbstractContextManager[None]:
    """What products of `keys`, cast to float32, are made in: TF32 on a GPU where it rounds none of them, else float32.

    TF32 has 10 bits of fraction and float32's range. bfloat16 has 7 and float16 10, so nothing is lost but the order
    in which a sum is taken; float32 keys keep float32's products.
    """
    short = keys.dtype in (torch.bfloat16, torch.float16)
    return float32_products("high") if short and keys.device.type == "cuda" else nullcontext()


@contextmanager
def float32_products(precision: Literal["highest", "high"]) -> Iterator[None]:
    """Inside, float32 products on a GPU are whole ("highest") or TF32's ("high"), whatever the process has set."""
    setting = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(setting)


def has_room(device: torch.device, size: int) -> bool:
    """Whether a GPU has many times `size` bytes left, for copies and what is measured of them; a CPU always has."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free > ROOM * size
