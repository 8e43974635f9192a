"""The directions that ordinary keys hardly use: `NullSpace`, from the eigenvectors of C (AlphaEdit; baselines 1.10)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and eigenvectors of C itself, without its ridge.

    Attributes:
        values: `[d_in]`, ascending, float64.
        vectors: One column per value, orthonormal, `[d_in, d_in]`, float64.
    """

    values: Tensor
    vectors: Tensor

    @staticmethod
    def of(mean: Tensor) -> Spectrum:
        """That of a symmetric matrix, computed in float64 on its device."""
        values, vectors = torch.linalg.eigh(mean.double())
        return Spectrum(values, vectors)

    def to(self, device: torch.device | str) -> Spectrum:
        """The same on `device`."""
        return Spectrum(self.values.to(device), self.vectors.to(device))


@dataclass(frozen=True)
class NullSpace:
    """P = I - U U^T: what is left of a key without the directions of C that carry much.

    Attributes:
        leading: U, the eigenvectors of the eigenvalues at or above the threshold, `[d_in, r]`, float64.
    """

    leading: Tensor

    @property
    def rank(self) -> int:
        """Directions that are kept: the rank of P, d_in - r."""
        return self.leading.shape[0] - self.leading.shape[1]

    def project(self, keys: Tensor) -> Tensor:
        """K P for keys `[n, d_in]`, in float64."""
        keys = keys.to(self.leading)
        return keys - (keys @ self.leading) @ self.leading.T

    def dense(self) -> Tensor:
        """P itself, `[d_in, d_in]`, float64."""
        d_in = self.leading.shape[0]
        return torch.eye(d_in, dtype=torch.float64, device=self.leading.device) - self.leading @ self.leading.T

    def to(self, device: torch.device | str) -> NullSpace:
        """The same on `device`."""
        return NullSpace(self.leading.to(device))
