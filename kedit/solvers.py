"""Closed forms: from keys and values to a change of one weight matrix. Pure functions of tensors.

Each returns `Factors` (`left [d_out, r]`, `right [r, d_in]`), computed in the dtype it is given (use float64)
and never in a model's half precision.
"""

from __future__ import annotations

from torch import Tensor

from kedit.delta import Factors
from kedit.errors import KeditError


def rome(k_bare: Tensor, v_bare: Tensor, v_star: Tensor, direction: Tensor) -> Factors:
    """ROME's rank-one update as published: Delta = (v* - v0) u^T / (k0 . u) (ROME eq. 2; baselines 1.3).

    k0 and v0 come from the bare prompt alone while u comes from the mean key over the contexts, so
    W'k0 = v* holds exactly, W'k_mean = v* does not, and a small k0 . u makes the update huge.

    Args:
        k_bare: k0, key of the bare prompt, `[d_in]`.
        v_bare: v0 = W k0 + b, `[d_out]`.
        v_star: The value wanted, `[d_out]`.
        direction: C^-1 k_mean, any scale, `[d_in]`.

    Returns:
        Factors of rank one.

    Raises:
        KeditError: k0 . u is zero or not finite.
    """
    u = direction / direction.norm()
    return _rank_one(v_star - v_bare, u, k_bare @ u, "k . u of the bare prompt's key")


def r_rome(k_mean: Tensor, v_mean: Tensor, v_star: Tensor, direction: Tensor) -> Factors:
    """R-ROME: the mean key in all three places, Delta = (v* - W k_mean - b) u^T / (k_mean . u) (baselines 1.4).

    W'k_mean = v* holds exactly, and the denominator k^T C^-1 k / ||C^-1 k|| is always positive.

    Args:
        k_mean: Mean key over the contexts, `[d_in]`.
        v_mean: W k_mean + b, `[d_out]`.
        v_star: The value wanted, `[d_out]`.
        direction: C^-1 k_mean, any scale, `[d_in]`.

    Returns:
        Factors of rank one.

    Raises:
        KeditError: k_mean . u is zero or not finite.
    """
    u = direction / direction.norm()
    return _rank_one(v_star - v_mean, u, k_mean @ u, "k . u of the mean key")


def _rank_one(residual: Tensor, u: Tensor, denominator: Tensor, what: str) -> Factors:
    if not bool(denominator.isfinite()) or float(denominator) == 0.0:
        raise KeditError(f"the update cannot be solved: {what} is {float(denominator)}")
    return Factors((residual / denominator)[:, None], u[None, :])
