"""The second moment of one layer's keys and what the editing methods ask of it: `Covariance`, `woodbury`.

Pure linear algebra in float64; where the matrix comes from is `collect`, where it is kept is `store`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kedit.covariance.null_space import NullSpace, Spectrum
from kedit.errors import KeditError

RIDGE = 1e-4  # relative to the mean diagonal; why this one: docs/statistics.md


class Covariance:
    """C = (1/N) sum k k^T over N tokens: uncentred, a mean (specs of ROME eq. 2, MEMIT eq. 14).

    Every solve uses C + ridge * mean(diag C) * I, through one Cholesky factor in float64 that is computed on
    first use and kept (8 * d_in^2 bytes).

    Args:
        mean: C, symmetric, `[d_in, d_in]`.
        count: N, the tokens it averages.
        ridge: Relative to the mean of C's diagonal; 0 solves with C itself.
        card: What is known of its origin (`kedit.covariance.store`).
        kept: Gives the eigenvectors of `mean` from where they are kept; None: they are computed anew.
    """

    def __init__(
        self,
        mean: Tensor,
        count: int,
        ridge: float = RIDGE,
        card: Mapping[str, Any] | None = None,
        kept: Callable[[Tensor], Spectrum] | None = None,
    ) -> None:
        if mean.dim() != 2 or mean.shape[0] != mean.shape[1]:
            raise ValueError(f"a covariance is square, got {tuple(mean.shape)}")
        if ridge < 0:
            raise KeditError(f"stats.ridge is {ridge}; it must be 0 or more")
        self.mean = mean
        self.count = count
        self.ridge = ridge
        self.card = dict(card or {})
        self._factor: Tensor | None = None
        self._kept = Spectrum.of if kept is None else kept
        self._spectrum: Spectrum | None = None

    def __repr__(self) -> str:
        return f"Covariance(d_in={self.d_in}, count={self.count}, ridge={self.ridge})"

    @property
    def d_in(self) -> int:
        """Width of the keys."""
        return self.mean.shape[0]

    @property
    def factor(self) -> Tensor:
        """Lower Cholesky factor of the ridged C, float64 `[d_in, d_in]`.

        Raises:
            KeditError: The matrix is not positive definite, as happens with fewer tokens than d_in.
        """
        factor = self._factor
        if factor is None:
            matrix = self.mean.double()  # a copy, unless C is float64 already
            matrix = matrix.clone() if matrix is self.mean else matrix
            diagonal = matrix.diagonal()
            diagonal += self.ridge * diagonal.mean()
            factor, info = torch.linalg.cholesky_ex(matrix)
            # With fewer tokens than d_in the rank is short, even where rounding lets the factorisation pass.
            if int(info) or (self.count < self.d_in and self.ridge == 0):
                raise KeditError(
                    f"the covariance of {self._name()} over {self.count} tokens (d_in {self.d_in}) cannot be "
                    f"inverted with ridge {self.ridge:g}; raise stats.tokens or stats.ridge"
                )
            self._factor = factor
        return factor

    def solve(self, k: Tensor) -> Tensor:
        """C^-1 k for each vector of `k: [..., d_in]`; float64, the same shape, on C's device."""
        columns = k.to(self.mean.device, torch.float64).reshape(-1, self.d_in).T
        return torch.cholesky_solve(columns, self.factor).T.reshape(k.shape)

    def quad(self, a: Tensor, b: Tensor) -> Tensor:
        """a^T C^-1 b for vectors `[..., d_in]` of equal (or broadcastable) shape; float64 `[...]`.

        E[quad(k, k)] is d_in on the text that C comes from (ridge 0): how unusual a key is, per dimension.
        """
        return (a.to(self.mean.device, torch.float64) * self.solve(b)).sum(-1)

    def null_space(self, threshold: float) -> NullSpace:
        """The directions in which ordinary keys have a second moment below `threshold`.

        It needs no inverse: C may be singular. The eigenvectors are computed once and, where C has a file, kept beside
        it, in float64 (docs/statistics.md, "Null spaces").

        Args:
            threshold: The least eigenvalue of C (without ridge) whose direction is left out. It is absolute, so its
                meaning depends on the scale of the keys (baselines 1.10).

        Raises:
            KeditError: No direction is below it.
        """
        if self._spectrum is None:
            self._spectrum = self._kept(self.mean)
        values, vectors = self._spectrum.values, self._spectrum.vectors
        found = NullSpace(vectors[:, values >= threshold])
        if found.rank == 0:
            raise KeditError(
                f"the keys of {self._name()} have no direction with a second moment below {threshold:g}: "
                f"the smallest is {float(values[0]):.3g}; give a larger threshold"
            )
        return found

    def to(self, device: torch.device | str) -> Covariance:
        """The same covariance on another device, what was computed of it too."""
        moved = Covariance(self.mean.to(device), self.count, self.ridge, self.card, self._kept)
        moved._factor = None if self._factor is None else self._factor.to(device)
        moved._spectrum = None if self._spectrum is None else self._spectrum.to(device)
        return moved

    def with_ridge(self, ridge: float) -> Covariance:
        """The same matrix with another ridge (and so another factor)."""
        same = Covariance(self.mean, self.count, ridge, self.card, self._kept)
        same._spectrum = self._spectrum
        return same

    def _name(self) -> str:
        return str(self.card.get("key", {}).get("module", "the keys"))


def packed(matrix: Tensor) -> Tensor:
    """The upper triangle of `matrix: [d, d]`, row by row, the diagonal with it: `[d * (d + 1) / 2]`."""
    return torch.cat([row[i:] for i, row in enumerate(matrix)])


def unpacked(upper: Tensor, d: int) -> Tensor:
    """The symmetric matrix `[d, d]` whose `packed` is `upper`, bit for bit."""
    full, start = upper.new_zeros(d, d), 0
    for i in range(d):
        full[i, i:] = upper[start : start + d - i]
        start += d - i
    return full + full.triu(1).T


def woodbury(cov: Covariance, keys: Tensor, lam: float) -> Tensor:
    """X = (lam C + K K^T)^-1 K without a factorisation of size d_in: for n << d_in keys.

    By the Woodbury identity X = S (I + K^T S)^-1 with S = (lam C)^-1 K, from the factor of C kept in `cov`
    (its ridge included). MEMIT's update is then R X^T (MEMIT eq. 14; specs/baselines.md 1.5).

    Args:
        cov: C.
        keys: K, one key per column, `[d_in, n]`.
        lam: MEMIT's lambda, above 0.

    Returns:
        X `[d_in, n]`, float64.
    """
    if lam <= 0:
        raise ValueError(f"woodbury expects lam > 0, got {lam}")
    keys = keys.to(cov.mean.device, torch.float64)
    scaled = torch.cholesky_solve(keys, cov.factor) / lam  # S
    small = torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device) + keys.T @ scaled
    return torch.linalg.solve(small.T, scaled.T).T
