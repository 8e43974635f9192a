"""How much one edit moves what another one reads: a figure from the deltas alone, without the model.

A low-rank change reads a few directions of its module's inputs. For edits i and j of one matrix the overlap of j on i
is ||D_j Q_i|| / ||D_i||, where the columns of Q_i are an orthonormal basis of what D_i reads: 0 where j leaves those
inputs alone, 1 where it moves them as far as edit i itself does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kedit.delta.change import WeightChange
from kedit.delta.delta import Delta


@dataclass(frozen=True)
class Overlap:
    """Of an ordered pair of edits, where it is largest.

    Attributes:
        of: Index of the edit whose inputs are moved.
        by: Index of the edit that moves them.
        path: The module.
        share: How far, relative to the edit's own change.
    """

    of: int
    by: int
    path: str
    share: float


def overlaps(deltas: Sequence[Delta]) -> list[Overlap]:
    """Every ordered pair of deltas that change a matrix in common, the largest share first."""
    largest: dict[tuple[int, int], Overlap] = {}
    for path in dict.fromkeys(path for delta in deltas for path in delta.paths):
        here = {i: _Reading(own) for i, delta in enumerate(deltas) if (own := _weights(delta, path))}
        for i, reading in here.items():
            for j, other in here.items():
                if i == j or not reading.norm:
                    continue
                share = other.moves(reading) / reading.norm
                if (i, j) not in largest or share > largest[i, j].share:
                    largest[i, j] = Overlap(i, j, path, share)
    return sorted(largest.values(), key=lambda one: -one.share)


def _weights(delta: Delta, path: str) -> list[WeightChange]:
    changes = dict(delta.items()).get(path, ())
    return [change for change in changes if isinstance(change, WeightChange)]


class _Reading:
    """The changes of one matrix, in float64: as factors where all have such, else as the matrix itself."""

    def __init__(self, changes: Sequence[WeightChange]) -> None:
        factored = [change.factored() for change in changes]
        known = [pair for pair in factored if pair is not None]
        if len(known) == len(changes):
            left = torch.cat([left for left, _ in known], 1).double()
            self.gram, self.right = left.T @ left, torch.cat([right for _, right in known]).double()
            self.basis: Tensor | None = _basis(self.right)
        else:
            matrix = torch.stack([change.dense() for change in changes]).sum(0).double()
            self.gram, self.right = torch.empty(0, 0, dtype=matrix.dtype), matrix
            self.basis = None  # it reads everything
        self.norm = self._norm(self.right)

    def moves(self, other: _Reading) -> float:
        """How far it moves what `other` reads."""
        return self.norm if other.basis is None else self._norm(self.right @ other.basis)

    def _norm(self, read: Tensor) -> float:
        square = (self.gram * (read @ read.T)).sum() if len(self.gram) else read.square().sum()
        return max(0.0, float(square)) ** 0.5


def _basis(right: Tensor) -> Tensor:
    """Orthonormal basis of the rows `[r, d_in]`, as columns; directions that are zero to rounding are left out."""
    _, sizes, v = torch.linalg.svd(right, full_matrices=False)
    return v[sizes > 1e-10 * sizes.max().clamp(min=1e-300)].T if len(sizes) else right.T
