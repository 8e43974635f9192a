"""Singular values of a change, and the change with the largest of them restrained (PRUNE). No model, no Lightning.

Only directions whose value is restrained are touched: `Delta' = Delta + U (F(S) / S - 1) U^T Delta`, U their left
singular vectors. So a change keeps its form: low-rank factors their right factor, a few rows or columns their lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kedit.delta.change import WeightChange
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors
from kedit.delta.slices import Slices

Restraint = Callable[[Tensor, float], Tensor]
"""F: singular values above sigma_max, and sigma_max -> what becomes of them."""


def logarithmic(base: float) -> Restraint:
    """F(s) = min(s, sigma_max + log_base(s / sigma_max)): PRUNE's own, which is above s where s ln(base) is below 1.

    Args:
        base: Above 1; `math.e` restrains most.
    """
    return lambda s, sigma_max: torch.minimum(s, sigma_max + (s / sigma_max).log() / math.log(base))


def halving(s: Tensor, sigma_max: float) -> Tensor:
    """F(s) = sigma_max + (s - sigma_max) / 2: what is above sigma_max is halved."""
    return sigma_max + (s - sigma_max) / 2


def largest(matrix: Tensor) -> float:
    """The largest singular value of a matrix `[d_out, d_in]`, from its smaller Gram matrix in float64."""
    m = matrix.detach().double()
    gram = m @ m.T if m.shape[0] <= m.shape[1] else m.T @ m
    return math.sqrt(max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0))


def decomposed(change: WeightChange) -> tuple[Tensor, Tensor]:
    """The left singular vectors and the singular values of a change, in float64.

    Of factors by QR of both, so that nothing as large as the matrix is decomposed; of slices from their lines alone.

    Returns:
        U `[d_out, r]` and S `[r]`, descending. Of slices of rows, U `[n, r]` are the touched rows of it; of slices of
        columns, of the transposed change, `[n, r]` too.
    """
    if isinstance(change, Factors):
        q_left, r_left = torch.linalg.qr(change.left.double())
        r_right = torch.linalg.qr(change.right.double().T)[1]
        u, s, _ = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
        return q_left @ u, s
    matrix = change.values if isinstance(change, Slices) else change.dense()
    u, s, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u, s


def restrained(change: WeightChange, sigma_max: float, restraint: Restraint) -> tuple[WeightChange, float, float]:
    """A change with the singular values above `sigma_max` restrained.

    Args:
        change: Delta.
        sigma_max: The largest singular value of the matrix before the first edit, above 0.
        restraint: F.

    Returns:
        U F(S) V^T in the form of `change` (dense where it is of another kind than kedit's own); `change` itself where
        no singular value is above `sigma_max`. Then Delta's largest singular value, before and after.
    """
    u, s = decomposed(change)
    before = float(s.max()) if len(s) else 0.0
    above = s > sigma_max
    if not bool(above.any()):
        return change, before, before
    values = restraint(s[above], sigma_max)
    u, factor = u[:, above], values / s[above] - 1
    after = max(float(values.max()), float(s[~above].max()) if bool((~above).any()) else 0.0)

    def of(matrix: Tensor) -> Tensor:
        wide = matrix.double()
        return (wide + (u * factor) @ (u.T @ wide)).float()

    if isinstance(change, Factors):
        return Factors(of(change.left), change.right), before, after
    if isinstance(change, Slices):
        return Slices(change.index, of(change.values), change.axis, change.shape), before, after
    return Dense(of(change.dense())), before, after
