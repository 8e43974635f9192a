"""`Factors`: a low-rank change of one matrix, as locate-then-edit methods make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit.delta.change import LaneStack, OutputPart, WeightChange


@dataclass(frozen=True)
class Factors(WeightChange):
    """`W' = W + left @ right`.

    Attributes:
        left: `[d_out, r]`, float32.
        right: `[r, d_in]`, float32.

    Raises:
        ValueError: The two do not fit together.
    """

    left: Tensor
    right: Tensor

    kind: ClassVar[str] = "changes"  # as in the first checkpoints

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ValueError(f"factors do not fit: {tuple(self.left.shape)} @ {tuple(self.right.shape)}")

    @property
    def rank(self) -> int:
        """Number of columns of `left`."""
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """`(d_out, d_in)`."""
        return self.left.shape[0], self.right.shape[1]

    def dense(self) -> Tensor:
        """The change itself, `[d_out, d_in]` in the factors' dtype."""
        return self.left @ self.right

    def factored(self) -> tuple[Tensor, Tensor]:
        """The two."""
        return self.left, self.right

    def extent(self) -> str:
        """The rank."""
        return f"rank {self.rank}"

    def lines(self, axis: int, index: Tensor) -> Tensor:
        """Some rows or columns of the product, in float64."""
        left, right = self.left.double(), self.right.double()
        return left[index] @ right if axis == 0 else right[:, index].T @ left.T

    def to(self, device: torch.device | str) -> Factors:
        """The same factors on `device`."""
        return Factors(self.left.to(device), self.right.to(device))

    def square_norm(self) -> float:
        """From the factors' small Gram matrices."""
        left, right = self.left.double(), self.right.double()
        return float(((left.T @ left) * (right @ right.T)).sum())

    @classmethod
    def add(cls, parts: Sequence[Factors]) -> Factors:
        """The sum: ranks add up."""
        return Factors(torch.cat([part.left for part in parts], 1), torch.cat([part.right for part in parts], 0))

    def tensors(self) -> dict[str, Tensor]:
        """`left` and `right`."""
        return {"left": self.left, "right": self.right}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Factors | None:
        """From `left` and `right`."""
        return Factors(tensors["left"], tensors["right"]) if "left" in tensors else None

    def pack(self) -> Any:
        """`(left, right)`."""
        return self.left, self.right

    @classmethod
    def unpack(cls, packed: Any) -> Factors:
        """From `(left, right)`."""
        left, right = packed
        return Factors(left, right)

    @classmethod
    def stack(cls, parts: Mapping[int, Factors], n_lanes: int) -> Sequence[LaneStack]:
        """One stack; ranks are padded with zeros."""
        return [_FactorStack(parts, n_lanes)]


class _FactorStack(LaneStack):
    """`y += left_b (right_b x)`."""

    def __init__(self, parts: Mapping[int, Factors], n: int) -> None:
        first, rank = next(iter(parts.values())), max(part.rank for part in parts.values())
        none = Factors(first.left.new_zeros(len(first.left), rank), first.right.new_zeros(rank, first.right.shape[1]))
        own = [parts.get(i, none) for i in range(n)]
        self.left = torch.stack([F.pad(part.left.T, (0, 0, 0, rank - part.rank)) for part in own])
        self.right = torch.stack([F.pad(part.right.T, (0, rank - part.rank)) for part in own])

    def after(self, lanes: Tensor, device: torch.device) -> OutputPart:
        lanes = lanes.to(self.left.device)
        left, right = self.left[lanes].to(device), self.right[lanes].to(device)  # [batch, r, d_out], [batch, d_in, r]

        def part(x: Tensor, y: Tensor) -> Tensor:
            return y + torch.bmm(torch.bmm(x.to(y.dtype), right.to(y.dtype)), left.to(y.dtype))

        return part
