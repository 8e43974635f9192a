"""Closed forms: from keys and values to a change of one weight matrix. Pure functions of tensors.

Each returns `Factors` (`left [d_out, r]`, `right [r, d_in]`), computed in the dtype it is given (use float64)
and never in a model's half precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kedit.covariance import Covariance, woodbury
from kedit.delta.factors import Factors
from kedit.errors import KeditError

DEPENDENT = 1e-9  # smallest eigenvalue of the keys' correlations in C^-1 that still counts as independent


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


def memit(keys: Tensor, residuals: Tensor, cov: Covariance, lam: float) -> Factors:
    """MEMIT: Delta = R K^T (lambda C + K K^T)^-1 (Meng et al. 2023, eq. 14; baselines 1.5).

    The minimum of lambda tr(Delta C Delta^T) + ||Delta K - R||^2. One key alone gets the share q / (1 + q) of its
    residual, q = k^T C^-1 k / lambda.

    Args:
        keys: K^T, `[n, d_in]`.
        residuals: R^T, what each key's value should gain, `[n, d_out]`.
        cov: C; its factor serves every solve (Woodbury, n << d_in).
        lam: lambda (`mom2_update_weight`), above 0.

    Returns:
        Factors of rank n, float64.
    """
    x = woodbury(cov, keys.T, lam)  # [d_in, n]
    return Factors(residuals.to(x).T, x.T)


def emmet(keys: Tensor, residuals: Tensor, cov: Covariance, scale: float, ridge: float) -> Factors:
    """EMMET: Delta = R (K^T (sC)^-1 K + eps I)^-1 K^T (sC)^-1 (Gupta et al. 2024; baselines 1.6).

    With eps = 0 the smallest change, in tr(Delta C Delta^T), that has Delta K = R exactly, whatever s is. With
    eps > 0, as published, it is MEMIT with lambda = s eps, to the last digit of the algebra.

    Args:
        keys: K^T, `[n, d_in]`.
        residuals: R^T, `[n, d_out]`.
        cov: C.
        scale: s (`mom2_update_weight`), above 0.
        ridge: eps (`emmet_lambda`), 0 or more.

    Returns:
        Factors of rank n, float64.

    Raises:
        KeditError: eps is 0 and the keys are linearly dependent, so that not every residual can be met.
    """
    keys = keys.to(cov.mean.device, torch.float64)
    whitened = cov.solve(keys) / scale  # [n, d_in]
    gram = keys @ whitened.T
    if ridge == 0:
        _check_independent(gram)
    gram = gram + ridge * torch.eye(len(keys), dtype=gram.dtype, device=gram.device)
    return Factors(residuals.to(gram).T, torch.linalg.solve(gram, whitened))


def _check_independent(gram: Tensor) -> None:
    """Raise unless the keys with inner products `gram: [n, n]` are linearly independent."""
    norm = gram.diagonal().sqrt()
    correlation = gram / norm / norm[:, None]
    if bool(correlation.isfinite().all()) and float(torch.linalg.eigvalsh(correlation)[0]) > DEPENDENT:
        return
    alike = correlation.abs().nan_to_num(1.0).fill_diagonal_(-1.0)
    i, j = divmod(int(alike.argmax()), len(gram))
    raise KeditError(
        f"the {len(gram)} keys of this edit batch are linearly dependent (most alike: numbers {i + 1} and "
        f"{j + 1}; two requests with one subject?). Set emmet_lambda above 0, or a smaller data.batch_size"
    )


def _rank_one(residual: Tensor, u: Tensor, denominator: Tensor, what: str) -> Factors:
    if not bool(denominator.isfinite()) or float(denominator) == 0.0:
        raise KeditError(f"the update cannot be solved: {what} is {float(denominator)}")
    return Factors((residual / denominator)[:, None], u[None, :])
