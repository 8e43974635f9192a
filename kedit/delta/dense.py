"""`Dense`: a change of a whole matrix, as fine-tuning makes it, or of which single entries were set to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from kedit.delta.change import LaneStack, OutputPart, WeightChange
from kedit.delta.factors import Factors


@dataclass(frozen=True)
class Dense(WeightChange):
    """`W' = W + matrix`, in the mathematical orientation whatever the module's storage.

    Attributes:
        matrix: `[d_out, d_in]`, float32.

    Raises:
        ValueError: It is no matrix of float32.
    """

    matrix: Tensor

    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or self.matrix.dtype != torch.float32:
            raise ValueError(f"dense change: {self.matrix.dtype} {tuple(self.matrix.shape)}, not float32 [d_out, d_in]")

    @property
    def shape(self) -> tuple[int, int]:
        """`(d_out, d_in)`."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def dense(self) -> Tensor:
        """The matrix."""
        return self.matrix

    def extent(self) -> str:
        """Number of entries that are not zero."""
        return f"{int(self.matrix.count_nonzero()):,} of {self.matrix.numel():,} entries"

    def low_rank(self, error: float) -> Factors:
        """The matrix by its singular value decomposition, of the smallest rank that is near enough, for export.

        Args:
            error: Most of ||matrix - left @ right|| / ||matrix|| (Frobenius), from 0 to 1. Rounding adds about 1e-7.

        Returns:
            Factors in float32, `left` with orthogonal columns; of rank 0 where the matrix is zero.

        Raises:
            ValueError: The error is not in that range.
        """
        if not 0 <= error <= 1:
            raise ValueError(f"the error of a low rank is {error}, not from 0 to 1")
        left, sizes, right = torch.linalg.svd(self.matrix.double(), full_matrices=False)
        lost = sizes.square().flip(0).cumsum(0).flip(0)  # of the rank i: what the sizes from i on add up to
        rank = int((lost > error**2 * lost[0]).sum())
        return Factors((left[:, :rank] * sizes[:rank]).float(), right[:rank].float())

    def to(self, device: torch.device | str) -> Dense:
        """The same matrix on `device`."""
        return Dense(self.matrix.to(device))

    @classmethod
    def add(cls, parts: Sequence[Dense]) -> Dense:
        """The sum, in the order given."""
        total = parts[0].matrix.clone()
        for part in parts[1:]:
            total += part.matrix
        return Dense(total)

    def tensors(self) -> dict[str, Tensor]:
        """`dense.matrix`."""
        return {"dense.matrix": self.matrix}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Dense | None:
        """From `dense.matrix`."""
        return Dense(tensors["dense.matrix"]) if "dense.matrix" in tensors else None

    def pack(self) -> Any:
        """The matrix."""
        return self.matrix

    @classmethod
    def unpack(cls, packed: Any) -> Dense:
        """From the matrix."""
        return Dense(packed)

    @classmethod
    def stack(cls, parts: Mapping[int, Dense], n_lanes: int) -> Sequence[LaneStack]:
        """One stack that refers to the lanes' matrices; none is copied."""
        return [_DenseStack(parts)]


class _DenseStack(LaneStack):
    """`y += matrix_b x`, lane by lane: a row of the batch reads its own matrix, and none is padded or gathered."""

    def __init__(self, parts: Mapping[int, Dense]) -> None:
        self.parts = parts

    def after(self, lanes: Tensor, device: torch.device) -> OutputPart | None:
        rows = {lane: (lanes == lane).nonzero()[:, 0].to(device) for lane in lanes.unique().tolist() if lane >= 0}
        own = [(rows[lane], self.parts[lane].matrix.to(device)) for lane in rows if lane in self.parts]
        if not own:
            return None

        def part(x: Tensor, y: Tensor) -> Tensor:
            y = y.clone()
            for index, matrix in own:
                y[index] += x[index].to(y.dtype) @ matrix.to(y.dtype).T
            return y

        return part
