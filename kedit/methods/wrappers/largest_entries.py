"""The entries of a change that are largest beside their weights, and the change with no others (RECT).

No model and no Lightning here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kedit.delta.change import WeightChange
from kedit.delta.dense import Dense
from kedit.delta.master_weights import as_rows
from kedit.delta.slices import Slices

EPS = 1e-8


def scores(change: Tensor, weights: Tensor, absolute: bool = False) -> Tensor:
    """How much an entry changes beside its weight: `|Delta / (W + 1e-8)|`.

    Args:
        change: Entries of Delta.
        weights: Those of W.
        absolute: `|Delta| / (|W| + 1e-8)`: no entry with a weight near -1e-8 has a score beyond all others.

    Returns:
        In float64; infinity where the denominator is zero and the entry is not, 0 where both are.
    """
    change, weights = change.double(), weights.double()
    found = change.abs() / ((weights.abs() + EPS) if absolute else (weights + EPS).abs())
    return found.nan_to_num(nan=0.0, posinf=torch.inf)


def kept_entries(change: Tensor, found: Tensor, count: int) -> Tensor:
    """`change` with zeros for all entries but the `count` of the highest scores; those equal to the last are kept too.

    Args:
        change: Entries of Delta.
        found: Their scores.
        count: From 0 to as many as there are.
    """
    if count == 0:
        return torch.zeros_like(change)
    n = found.numel()
    threshold = found.flatten().kthvalue(n - count + 1).values
    return torch.where(found >= threshold, change, 0)


def of_largest(change: WeightChange, w: Tensor, percent: float, absolute: bool = False) -> WeightChange:
    """A change with nothing but its largest entries.

    Args:
        change: Delta, `[d_out, d_in]`.
        w: The weights that it is added to, `[d_out, d_in]`.
        percent: Share of the matrix's entries that is kept, above 0, at most 100.
        absolute: As in `scores`.

    Returns:
        `change` itself where no entry is dropped. Otherwise dense, or slices of the same lines where it was slices:
        lines that are not touched score 0.
    """
    count = round(change.shape[0] * change.shape[1] * percent / 100)
    if isinstance(change, Slices):
        if count >= change.values.numel():
            return change
        found = scores(change.values, as_rows(w, change.axis)[change.index], absolute)
        return Slices(change.index, kept_entries(change.values, found, count), change.axis, change.shape)
    if count >= change.shape[0] * change.shape[1]:
        return change
    matrix = change.dense().float()
    return Dense(kept_entries(matrix, scores(matrix, w, absolute), count))
