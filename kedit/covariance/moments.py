"""The running sum of k k^T: only its upper triangle is computed, in strips of columns."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

STRIPS = 8  # 9/16 of the full product's work; with more of them the products get too small to be fast


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
        keys = keys.to(self.dtype)
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
        """The sums as they are now, in the CPU's memory."""
        kept = SecondMoment(self.d_in, self.dtype, torch.device("cpu"))
        return kept.load({name: tensor.cpu().clone() for name, tensor in self.state().items()}, self.count)

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """The strips by name, for a file."""
        return {f"{prefix}strip{i}": strip for i, strip in enumerate(self.strips)}

    def load(self, tensors: dict[str, Tensor], count: int, prefix: str = "") -> SecondMoment:
        """Take over what `state` gave, bit for bit."""
        for i, strip in enumerate(self.strips):
            strip.copy_(tensors[f"{prefix}strip{i}"])
        self.count = count
        return self
