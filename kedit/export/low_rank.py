"""Changes of one matrix as two factors: how few directions they need, to the rounding of float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kedit.delta.change import WeightChange
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors
from kedit.delta.slices import Slices

EXACT = 1e-6
"""Most of what may be lost of a change, relative to its Frobenius norm: a few roundings of float32."""


def most_directions(shape: tuple[int, int]) -> int:
    """The largest rank of which two factors are not larger than the matrix itself."""
    return shape[0] * shape[1] // (shape[0] + shape[1])


def factors_of(changes: Sequence[WeightChange]) -> Factors | None:
    """The sum of some changes of one matrix, in the order given.

    Args:
        changes: All of one shape.

    Returns:
        Factors of a rank of at most min(d_out, d_in), exact to `EXACT`; None where one of the changes is a whole matrix
        whose factors would be larger than itself.
    """
    parts = []
    for change in changes:
        own = change.factored()
        own = _searched(change.dense()) if own is None else Factors(*own)
        if own is None:
            return None
        parts.append(own)
    total = Factors.add(parts)
    return _square(total) if total.rank > min(total.shape) else total


def recompressed(factors: Factors) -> Factors:
    """The same product with as few directions as it has, where those are fewer; exact to `EXACT`.

    Two QR decompositions and the singular values of a small matrix, in float64.
    """
    left, inner = torch.linalg.qr(factors.left.double())
    right, outer = torch.linalg.qr(factors.right.double().T)
    u, sizes, v = torch.linalg.svd(inner @ outer.T, full_matrices=False)
    rank = _rank(sizes)
    if rank >= factors.rank:
        return factors
    return Factors((left @ (u[:, :rank] * sizes[:rank])).float(), (v[:rank] @ right.T).float())


def lost(before: Factors, after: Factors) -> float:
    """||before - after|| / ||before|| (Frobenius), in float64, without either matrix."""
    size = before.square_norm() ** 0.5
    difference = Factors.add([before, Factors(-after.left, after.right)])
    return max(0.0, difference.square_norm()) ** 0.5 / size if size else 0.0


def _searched(matrix: Tensor) -> Factors | None:
    """A whole matrix by its few lines, or its few singular directions; None where it has many of both."""
    shape = (matrix.shape[0], matrix.shape[1])
    most = most_directions(shape)
    rows, columns = (matrix.any(axis).nonzero()[:, 0] for axis in (1, 0))
    if min(len(rows), len(columns)) <= most:
        by_rows = len(rows) <= len(columns)
        index, values = (rows, matrix[rows]) if by_rows else (columns, matrix[:, columns].T.contiguous())
        return Factors(*Slices(index, values, 0 if by_rows else 1, shape).factored())
    found = Dense(matrix).low_rank(EXACT)
    return found if found.rank <= most else None


def _square(factors: Factors) -> Factors:
    """The same product, one of whose factors is the identity."""
    matrix = (factors.left.double() @ factors.right.double()).float()
    d_out, d_in = factors.shape
    if d_out <= d_in:
        return Factors(torch.eye(d_out, device=matrix.device), matrix)
    return Factors(matrix, torch.eye(d_in, device=matrix.device))


def _rank(sizes: Tensor) -> int:
    """How many singular values, in falling order, must be kept."""
    tail = sizes.square().flip(0).cumsum(0).flip(0)  # of the rank i: what is lost from i on
    return int((tail > EXACT**2 * tail[0]).sum()) if len(tail) else 0
