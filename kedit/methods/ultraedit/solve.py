"""UltraEdit's closed form: what each token's output should gain, and the change of the weight that gives it.

v_t = -eta ||h^_t||^2 g^_t and Delta^T = (H^T H + I)^-1 H^T V, where h^, g^ are normalised and H is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kedit.delta.change import WeightChange
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors


def wanted(keys: Tensor, gradients: Tensor, eta: float) -> Tensor:
    """V: what the outputs should gain, `[t, d_out]`.

    Args:
        keys: h^, normalised, `[t, d_in]`, float64.
        gradients: g^, normalised, `[t, d_out]`, float64.
        eta: The step.
    """
    return -eta * keys.square().sum(1, keepdim=True) * gradients


def by_tokens(keys: Tensor, gains: Tensor) -> Tensor:
    """X in Delta = X^T H, by the t x t system (H H^T + I) X = V (push-through): `[t, d_out]`."""
    gram = keys @ keys.T
    gram.diagonal().add_(1.0)
    return torch.linalg.solve(gram, gains)


def by_width(keys: Tensor, gains: Tensor) -> Tensor:
    """Delta itself, by the d_in x d_in system (H^T H + I) Delta^T = H^T V: `[d_out, d_in]`."""
    gram = keys.T @ keys
    gram.diagonal().add_(1.0)
    return torch.linalg.solve(gram, keys.T @ gains).T


def solve(keys: Tensor, gains: Tensor) -> WeightChange:
    """The change by the smaller of the two systems, in the smaller of the two forms.

    Args:
        keys: H as it is, `[t, d_in]`, float64.
        gains: V, `[t, d_out]`, float64.

    Returns:
        `Factors` of rank t, or `Dense` where the matrix is smaller than these; float32.
    """
    (t, d_in), d_out = keys.shape, gains.shape[1]
    if t > d_in:
        return Dense(by_width(keys, gains).float().contiguous())
    left = by_tokens(keys, gains).T
    if dense_is_smaller(t, d_out, d_in):
        return Dense((left @ keys).float())
    return Factors(left.float().contiguous(), keys.float())


def dense_is_smaller(rank: int, d_out: int, d_in: int) -> bool:
    """Whether the matrix holds fewer numbers than two factors of that rank."""
    return rank * (d_out + d_in) > d_out * d_in
