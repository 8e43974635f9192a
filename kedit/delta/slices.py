"""`Slices`: a change of a few rows or columns of one matrix, as PAC makes it.

Costs memory for the touched lines alone, also in lanes and where it is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from kedit.delta.change import Change, LaneStack, OutputPart, WeightChange
from kedit.delta.master_weights import as_rows
from kedit.delta.place import Place
from kedit.model.architecture import weight


@dataclass(frozen=True)
class Slices(WeightChange):
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

    kind: ClassVar[str] = "slices"

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
        as_rows(change, self.axis)[self.index] = self.values
        return change

    def factored(self) -> tuple[Tensor, Tensor]:
        """Which lines they are, and what is added to them."""
        chosen = self.values.new_zeros(len(self.index), self.shape[self.axis])
        chosen[torch.arange(len(self.index), device=self.index.device), self.index] = 1.0
        return (chosen.T, self.values) if self.axis == 0 else (self.values.T, chosen)

    def extent(self) -> str:
        """Number of lines."""
        return f"{len(self.index)} of {self.shape[self.axis]} {('rows', 'columns')[self.axis]}"

    def to(self, device: torch.device | str) -> Slices:
        """The same slices on `device`."""
        return Slices(self.index.to(device), self.values.to(device), self.axis, self.shape)

    def write(self, place: Place) -> None:
        """Adds the lines to the weight; other lines are not even rounded again."""
        w = weight(place.module)
        place.backup(weight).add_lines(w, self.axis, self.index.to(w.device), self.values.to(w.device))

    def numbers(self) -> Iterable[Tensor]:
        """The values."""
        return [self.values]

    def square_norm(self) -> float:
        """Sum of the squares of the values, in float64."""
        return float(self.values.double().square().sum())

    def inner(self, earlier: Change) -> float:
        """Sum of products over the touched lines, in float64."""
        if not isinstance(earlier, WeightChange):
            return 0.0
        return float((self.values.double() * earlier.lines(self.axis, self.index)).sum())

    @classmethod
    def add(cls, parts: Sequence[Slices]) -> Slices:
        """The sum of `parts`: the union of their lines, values added in the order given.

        Raises:
            ValueError: No parts, or parts of different axes or shapes.
        """
        if len({part.axis for part in parts}) > 1:
            raise ValueError("slices to add must be of one axis and shape, not both rows and columns")
        shapes = {part.shape for part in parts}
        if len(shapes) != 1:
            raise ValueError(f"slices to add must be of one axis and shape, not {sorted(shapes)}")
        first = parts[0]
        if len(parts) == 1:
            return first
        index = torch.cat([part.index for part in parts]).unique()
        values = first.values.new_zeros(len(index), first.values.shape[1])
        for part in parts:
            values[torch.searchsorted(index, part.index)] += part.values
        return Slices(index, values, first.axis, first.shape)

    def tensors(self) -> dict[str, Tensor]:
        """`slices.index`, `slices.values`, and `slices.layout`, which is axis, d_out and d_in."""
        layout = torch.tensor([self.axis, *self.shape])
        return {"slices.index": self.index, "slices.values": self.values, "slices.layout": layout}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Slices | None:
        """From those three."""
        if "slices.index" not in tensors:
            return None
        layout = tensors["slices.layout"]
        if layout.dtype != torch.int64:
            raise ValueError(f"slices.layout is {layout.dtype}, not int64")
        axis, d_out, d_in = layout.tolist()
        return Slices(tensors["slices.index"], tensors["slices.values"], axis, (d_out, d_in))

    def pack(self) -> Any:
        """Index, values, axis and shape."""
        return self.index, self.values, self.axis, self.shape

    @classmethod
    def unpack(cls, packed: Any) -> Slices:
        """From those four."""
        return Slices(*packed)

    @classmethod
    def stack(cls, parts: Mapping[int, Slices], n_lanes: int) -> Sequence[LaneStack]:
        """One stack of the lanes that change rows and one of those that change columns."""
        by_axis = [{i: part for i, part in parts.items() if part.axis == axis} for axis in (0, 1)]
        return [_SliceStack(some, n_lanes) for some in by_axis if some]


class _SliceStack(LaneStack):
    """`y[index_b] += values_b x` (rows) or `y += values_b^T x[index_b]` (columns); all of one axis."""

    def __init__(self, parts: Mapping[int, Slices], n: int) -> None:
        first, size = next(iter(parts.values())), max(len(part.index) for part in parts.values())
        self.axis = first.axis
        self.index = first.index.new_zeros(n, size)
        self.values = first.values.new_zeros(n, size, first.values.shape[1])
        for i, part in parts.items():
            self.index[i, : len(part.index)] = part.index
            self.values[i, : len(part.index)] = part.values

    def after(self, lanes: Tensor, device: torch.device) -> OutputPart:
        lanes = lanes.to(self.values.device)
        index = self.index[lanes].to(device)[:, None]  # [batch, 1, n]

        def part(x: Tensor, y: Tensor) -> Tensor:
            # gathered anew in every forward pass: for all modules of a large model at once they would fill the memory
            values = self.values[lanes].to(device, y.dtype)  # [batch, n, width]
            at = index.expand(-1, x.shape[1], -1)
            if self.axis == 0:
                return y.scatter_add(2, at, torch.bmm(x.to(y.dtype), values.transpose(1, 2)))
            return torch.baddbmm(y, x.gather(2, at).to(y.dtype), values)

        return part
