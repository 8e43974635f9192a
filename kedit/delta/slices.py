"""`Slices`: a change of a few rows or columns of one matrix, as PAC makes it.

Costs memory for the touched lines alone. How it gets into a model is in `kedit.delta.master_weights` and
`kedit.delta.lanes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slices:
    """`W'[index] = W[index] + values` (rows) or `W'[:, index] = W[:, index] + values.T` (columns).

    In the mathematical orientation `[d_out, d_in]` whatever the module's storage.

    Attributes:
        index: The rows or columns that change, `[n]` int64, ascending, each once.
        values: What is added to them, float32: `[n, d_in]` for rows, `[n, d_out]` for columns.
        axis: 0 for rows, 1 for columns.
        shape: `(d_out, d_in)` of the matrix.

    Raises:
        ValueError: The parts do not fit together.
    """

    index: Tensor
    values: Tensor
    axis: int
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if self.axis not in (0, 1):
            raise ValueError(f"axis {self.axis} of slices: 0 (rows) or 1 (columns)")
        if self.index.ndim != 1 or self.index.dtype != torch.int64:
            raise ValueError(f"index of slices: {self.index.dtype} {tuple(self.index.shape)}, not int64 [n]")
        wanted = (len(self.index), self.shape[1 - self.axis])
        if tuple(self.values.shape) != wanted or self.values.dtype != torch.float32:
            raise ValueError(f"values of slices: {self.values.dtype} {tuple(self.values.shape)}, not float32 {wanted}")
        found = self.index.tolist()
        if any(after <= before for before, after in pairwise(found)):
            raise ValueError("index of slices is not ascending, each line once")
        if found and not 0 <= found[0] <= found[-1] < self.shape[self.axis]:
            raise ValueError(f"index of slices: {found[0]} to {found[-1]}, of {self.shape[self.axis]} lines")

    def dense(self) -> Tensor:
        """The change itself, `[d_out, d_in]`."""
        change = self.values.new_zeros(self.shape)
        lines(change, self.axis)[self.index] = self.values
        return change

    def to(self, device: torch.device | str) -> Slices:
        """The same slices on `device`."""
        return Slices(self.index.to(device), self.values.to(device), self.axis, self.shape)

    def square_norm(self) -> float:
        """Square of the Frobenius norm, summed in float64."""
        return float(self.values.double().square().sum())

    def inner(self, left: Tensor, right: Tensor) -> float:
        """Inner product with the low-rank matrix `left @ right`: `[d_out, r]`, `[r, d_in]`; summed in float64."""
        left, right = left.double(), right.double()
        own = left[self.index] @ right if self.axis == 0 else right[:, self.index].T @ left.T
        return float((self.values.double() * own).sum())

    @staticmethod
    def add(parts: Sequence[Slices]) -> Slices:
        """The sum of `parts`: the union of their lines, values added in the order given.

        Raises:
            ValueError: No parts, or parts of different axes or shapes.
        """
        kinds = {(part.axis, part.shape) for part in parts}
        if len(kinds) != 1:
            raise ValueError(f"slices to add must be of one axis and shape, not {sorted(kinds)}")
        first = parts[0]
        index = torch.cat([part.index for part in parts]).unique()
        values = first.values.new_zeros(len(index), first.values.shape[1])
        for part in parts:
            values[torch.searchsorted(index, part.index)] += part.values
        return Slices(index, values, first.axis, first.shape)


def lines(matrix: Tensor, axis: int) -> Tensor:
    """A view of `matrix` `[d_out, d_in]` whose rows are its rows (axis 0) or its columns (axis 1)."""
    return matrix if axis == 0 else matrix.T
