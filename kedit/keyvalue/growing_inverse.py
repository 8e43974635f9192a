"""`GrowingInverse`: (A + Kp Kp^T)^-1 while keys Kp are added, for closed forms that remember the edits before.

Pure linear algebra in float64. A is what a method weighs the size of a change with: `WeighedCovariance` (MEMIT) or
`WithinNullSpace` (AlphaEdit). Which keys are remembered is `past_keys`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kedit.covariance import Covariance, NullSpace
from kedit.errors import KeditError

DRIFT = 1e-8  # relative error of the kept inverse above which it is computed anew from the sum of the keys

log = logging.getLogger(__name__)


class Metric(Protocol):
    """A, symmetric and positive definite on the directions in which a change may act, which `project` projects onto.

    Keys are rows here, `[n, d_in]`; everything is float64.
    """

    def project(self, keys: Tensor) -> Tensor:
        """The part of each key in the directions in which a change may act."""
        ...

    def times(self, keys: Tensor) -> Tensor:
        """A k for keys in these directions."""
        ...

    def solve(self, keys: Tensor) -> Tensor:
        """A^-1 k of that part."""
        ...

    def inverse(self, total: Tensor) -> Tensor:
        """(A + total)^-1 in these directions and zero in all others, `[d_in, d_in]`, for a dense sum of k k^T."""
        ...


@dataclass(frozen=True)
class WeighedCovariance:
    """A = lambda C, with C's ridge (MEMIT; baselines 1.5)."""

    cov: Covariance
    lam: float

    def project(self, keys: Tensor) -> Tensor:
        """The keys themselves."""
        return keys

    def times(self, keys: Tensor) -> Tensor:
        """lambda C k."""
        return self.lam * (keys @ self.cov.factor) @ self.cov.factor.T

    def solve(self, keys: Tensor) -> Tensor:
        """C^-1 k / lambda."""
        return self.cov.solve(keys) / self.lam

    def inverse(self, total: Tensor) -> Tensor:
        """(lambda C + total)^-1."""
        return _inverse(self.lam * (self.cov.factor @ self.cov.factor.T) + total)


@dataclass(frozen=True)
class WithinNullSpace:
    """A = l2 I for changes within a null space, Delta P = Delta (AlphaEdit; baselines 1.10)."""

    space: NullSpace
    l2: float

    def project(self, keys: Tensor) -> Tensor:
        """P k."""
        return self.space.project(keys)

    def times(self, keys: Tensor) -> Tensor:
        """l2 k."""
        return self.l2 * keys

    def solve(self, keys: Tensor) -> Tensor:
        """P k / l2."""
        return self.space.project(keys) / self.l2

    def inverse(self, total: Tensor) -> Tensor:
        """P (P total P + l2 I)^-1 P."""
        inside = self.space.project(self.space.project(total).T)
        inside.diagonal().add_(self.l2)
        return self.space.project(self.space.project(_inverse(inside)).T)


class GrowingInverse:
    """B = (A + Kp Kp^T)^-1 for keys Kp that come batch by batch; their order matters only to rounding.

    While there are fewer keys than `d_in`, B = A^-1 - V^T V. A batch of n keys adds n rows to V: a step of a block
    Cholesky factorisation of I + Kp^T A^-1 Kp. From then on B is one dense matrix, computed from the sum of all
    k k^T, and a batch takes V^T V from it. What that costs no longer grows with the number of keys. Should rounding
    show, B is computed anew from the sum (`DRIFT`).

    Args:
        d_in: Width of the keys.

    Attributes:
        count: Number of keys so far.
        total: Sum of k k^T, float64 `[d_in, d_in]`, once B is dense.
        dense: B, likewise.
    """

    def __init__(self, d_in: int) -> None:
        self.d_in, self.count = d_in, 0
        self.total: Tensor | None = None
        self.dense: Tensor | None = None
        self._keys: list[Tensor] = []
        self._rows: list[Tensor] = []  # V
        self._v: Tensor | None = None  # these as one matrix

    def add(self, keys: Tensor, metric: Metric) -> None:
        """Takes up a batch of keys, `[n, d_in]`; `metric` must be the same in every call."""
        keys = keys.double()
        self.count += len(keys)
        if self.dense is None and self.count >= self.d_in:
            self.total = _sum([*self._keys, keys])
            self.dense = metric.inverse(self.total)
            self._keys, self._rows, self._v = [], [], None
            return
        solved = self.solve(keys, metric)
        lower = torch.linalg.cholesky(_gram(keys, solved))
        rows = torch.linalg.solve_triangular(lower, solved, upper=False)
        if self.dense is None:
            self._keys.append(keys)
            self._rows.append(rows)
            self._v = None
            return
        assert self.total is not None
        self.dense -= rows.T @ rows
        self.total += keys.T @ keys
        if self._error(keys, metric) > DRIFT:
            log.info("the kept inverse of %d past keys has drifted: it is computed anew", self.count)
            self.dense = metric.inverse(self.total)

    def solve(self, keys: Tensor, metric: Metric) -> Tensor:
        """B k for each key, `[n, d_in]`."""
        if self.dense is not None:
            return keys @ self.dense
        solved = metric.solve(keys)
        if self._rows:
            if self._v is None:
                self._v = torch.cat(self._rows)
                self._rows = [self._v]
            solved = solved - (keys @ self._v.T) @ self._v
        return solved

    def gains(self, keys: Tensor, metric: Metric) -> Tensor:
        """X = (A + Kp Kp^T + K K^T)^-1 K for the keys of a new batch, which are not taken up, `[n, d_in]`.

        The change that gives these keys residuals R and weighs what moves the old ones is R X^T.
        """
        solved = self.solve(keys, metric)
        return torch.linalg.solve(_gram(keys, solved), solved)

    def restore(self, count: int, total: Tensor, dense: Tensor) -> None:
        """Takes back `count`, `total` and `dense` of another one, to the bit."""
        self.count, self.total, self.dense = count, total.clone(), dense.clone()

    def to(self, device: torch.device) -> None:
        """Moves what is kept."""
        kept = [*self._keys, *self._rows] if self.dense is None else [self.dense]
        if all(tensor.device == device for tensor in kept):
            return
        self._keys, self._rows = [k.to(device) for k in self._keys], [v.to(device) for v in self._rows]
        self._v = None
        self.total = None if self.total is None else self.total.to(device)
        self.dense = None if self.dense is None else self.dense.to(device)

    def _error(self, keys: Tensor, metric: Metric) -> float:
        """How far (A + Kp Kp^T) B k is from k, relative to its size, at the worst of some keys."""
        assert self.total is not None
        wanted, found = metric.project(keys), self.solve(keys, metric)
        found = metric.times(found) + metric.project(found @ self.total)
        return float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(1e-300)).max())


def _gram(keys: Tensor, solved: Tensor) -> Tensor:
    """I + K^T B K, `[n, n]`."""
    return torch.eye(len(keys), dtype=keys.dtype, device=keys.device) + keys @ solved.T


def _sum(batches: list[Tensor]) -> Tensor:
    total = torch.zeros(batches[0].shape[1], batches[0].shape[1], dtype=torch.float64, device=batches[0].device)
    for keys in batches:
        total += keys.T @ keys
    return total


def _inverse(matrix: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise KeditError("the past keys' matrix is not positive definite: raise the weight of the size of a change")
    return torch.cholesky_inverse(factor)
