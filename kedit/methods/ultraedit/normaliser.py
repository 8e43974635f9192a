"""The lifelong normaliser: mean and spread of (key, gradient) over every token that was ever edited.

Chan's update joins the statistics of two sets exactly, so that they are those of all tokens at once, in whatever
chunks these came. Modules with weights of one shape share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kedit.errors import KeditError

EPS = torch.finfo(torch.float32).eps  # added to the deviations, as published
Shape = tuple[int, int]
"""`(d_in, d_out)` of a weight."""


@dataclass
class Statistics:
    """Of vectors of one width, float64.

    Attributes:
        n: How many there were.
        mean: Their mean, `[d]`.
        m2: Sums of squared deviations from it, `[d]`.
    """

    n: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device) -> Statistics:
        """Of no vectors."""
        zeros = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, zeros, zeros.clone())

    def update(self, x: Tensor) -> None:
        """Takes up further vectors, `[t, d]`."""
        x = x.to(self.mean)
        own = x.mean(0)
        n, apart = self.n + len(x), own - self.mean
        self.m2 = self.m2 + (x - own).square().sum(0) + apart.square() * (self.n * len(x) / n)
        self.mean = self.mean + apart * (len(x) / n)
        self.n = n

    def normalised(self, x: Tensor) -> Tensor:
        """(x - mean) / deviation, of `[t, d]`; the deviation is that of a sample (n - 1)."""
        deviation = (self.m2 / max(self.n - 1, 1)).sqrt()
        return (x.to(self.mean) - self.mean) / (deviation + EPS)


class Normaliser:
    """The statistics of all shapes.

    Args:
        device: Where they live.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.of_shape: dict[Shape, Statistics] = {}

    def update(self, keys: Tensor, gradients: Tensor) -> None:
        """Takes up the tokens of one module: `[t, d_in]` and `[t, d_out]`."""
        shape = (keys.shape[1], gradients.shape[1])
        if shape not in self.of_shape:
            self.of_shape[shape] = Statistics.empty(sum(shape), self.device)
        self.of_shape[shape].update(torch.cat([keys.double(), gradients.double()], 1))

    def normalised(self, keys: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and gradients of one module in units of their deviations, float64."""
        shape = (keys.shape[1], gradients.shape[1])
        both = self.of_shape[shape].normalised(torch.cat([keys.double(), gradients.double()], 1))
        return both[:, : shape[0]], both[:, shape[0] :]

    @property
    def tokens(self) -> int:
        """Least number of tokens that any of the statistics is of."""
        return min((own.n for own in self.of_shape.values()), default=0)

    def copy(self) -> Normaliser:
        """One that goes its own way."""
        return deepcopy(self)

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint holds of it."""
        return [{"shape": list(shape), "n": s.n, "mean": s.mean, "m2": s.m2} for shape, s in self.of_shape.items()]

    def load(self, state: list[Mapping[str, Any]]) -> None:
        """Takes back what `state` gave.

        Raises:
            KeditError: It is something else.
        """
        for own in state:
            d_in, d_out = own["shape"]
            n, mean, m2 = own["n"], own["mean"], own["m2"]
            whole = all(t.dtype == torch.float64 and t.shape == (d_in + d_out,) for t in (mean, m2))
            if not (whole and isinstance(n, int) and n > 0 and bool((m2 >= 0).all())):
                raise KeditError(f"this checkpoint is damaged: the normaliser of weights {d_in} x {d_out} is of no use")
            self.of_shape[d_in, d_out] = Statistics(n, mean.to(self.device), m2.to(self.device))
