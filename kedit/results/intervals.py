"""Confidence intervals over records: the bootstrap, and Wilson's interval where the bootstrap says nothing.

Pure functions of arrays. A column is one quantity (say, efficacy after the edit), a row one record, NaN a
record that lacks the quantity. All columns are resampled together, so that differences and composed scores
are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Scale = Literal["rate", "change", "other"]

RESAMPLES = 1_000_000
"""The most that an option may ask for: their means are kept in memory."""


def resampled_means(values: ArrayLike, resamples: int = 2000, seed: int = 0) -> Floats:
    """Means of bootstrap samples of the records.

    Args:
        values: `[n, c]` case values, NaN where a record has none.
        resamples: Number R of samples of n records with replacement.
        seed: The same seed and values give the same bits.

    Returns:
        `[R, c]` means over the drawn records that have the quantity; NaN where none of them has.
    """
    data = np.asarray(values, dtype=np.float64)
    n, columns = data.shape
    present = ~np.isnan(data)
    both = np.concatenate([np.where(present, data, 0.0), present], axis=1)  # [n, 2c]
    rng = np.random.default_rng(seed)
    means = np.full((resamples, columns), np.nan)
    chunk = max(1, 2**22 // max(n, 1))  # counts of at most 32 MB at a time
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        sums = counts @ both
        np.divide(sums[:, :columns], sums[:, columns:], out=means[start : start + rows], where=sums[:, columns:] > 0)
    return means


def percentile_interval(means: Floats, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of bootstrap means `[R]`."""
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return float(low), float(high)


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion `successes / n`."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p, square = successes / n, z * z / n
    centre, half = p + square / 2, sqrt(square * p * (1 - p) + square * square / 4)
    return max(0.0, (centre - half) / (1 + square)), min(1.0, (centre + half) / (1 + square))


def mean_interval(values: ArrayLike, means: Floats, scale: Scale = "rate", level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of one quantity.

    Where all records agree, no resample differs and the bootstrap's interval is a point. For a rate that is 0
    or 1 everywhere (or a difference of rates that is -1, 0 or 1) the point is replaced by Wilson's interval:
    with n records, it leaves room for z^2 / (n + z^2) that behave differently. Other constants stay a point.

    Args:
        values: `[n]` case values, NaN allowed.
        means: `[R]` their `resampled_means`.
        scale: `rate`: a share in [0, 1]; `change`: a difference of two shares; `other`: anything else.
        level: Coverage.
    """
    data = np.asarray(values, dtype=np.float64)
    data = data[~np.isnan(data)]
    first = float(data[0])
    if not np.all(data == first):
        return percentile_interval(means, level)
    lowest = -1.0 if scale == "change" else 0.0
    if scale == "other" or first not in (lowest, 0.0, 1.0):
        return first, first
    room = wilson(0, len(data), level)[1]
    return max(lowest, first - room), min(1.0, first + room)


def bootstrap(
    values: Sequence[float], resamples: int = 2000, seed: int = 0, level: float = 0.95, scale: Scale = "rate"
) -> tuple[float, float]:
    """Interval of the mean of one quantity `[n]`; see `resampled_means` and `mean_interval`."""
    means = resampled_means(np.asarray(values, dtype=np.float64)[:, None], resamples, seed)
    return mean_interval(values, means[:, 0], scale, level)


def paired(
    before: Sequence[float],
    after: Sequence[float],
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    scale: Scale = "change",
) -> tuple[float, float]:
    """Interval of mean(after - before), the two measured on the same records."""
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return bootstrap(change.tolist(), resamples, seed, level, scale)


def paired_cell(pairs: Sequence[tuple[float, float]], resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Means of a quantity that is no rate, with intervals over records, rounded to 4 decimals.

    Args:
        pairs: (before, after) per record, at least one.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        `before`, `after`, `change`, `ci` of after, `change_ci`, `n_records`.
    """
    before, after = ([pair[i] for pair in pairs] for i in (0, 1))
    n = len(pairs)
    return {
        "before": round(sum(before) / n, 4),
        "after": round(sum(after) / n, 4),
        "change": round((sum(after) - sum(before)) / n, 4),
        "ci": [round(end, 4) for end in bootstrap(after, resamples, seed, scale="other")],
        "change_ci": [round(end, 4) for end in paired(before, after, resamples, seed, scale="other")],
        "n_records": n,
    }


def harmonic_mean(values: ArrayLike) -> Floats:
    """n / (1/x_1 + ... + 1/x_n) along the last axis; 0 where any value is 0 (or below)."""
    data = np.asarray(values, dtype=np.float64)
    worst = data.min(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = data.shape[-1] / (1 / data).sum(axis=-1)
    return np.where(worst > 0, mean, np.where(np.isnan(worst), np.nan, 0.0))


def harmonic_interval(
    values: ArrayLike, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the harmonic mean of the column means of `values: [n, c]`, rates in [0, 1]."""
    data = np.asarray(values, dtype=np.float64)
    return harmonic_of(data, resampled_means(data, resamples, seed), level)


def harmonic_of(values: Floats, means: Floats, level: float = 0.95) -> tuple[float, float]:
    """`harmonic_interval` from resampled means `[R, c]` that exist already.

    Where no resample differs from another, the harmonic means of the columns' lower and of their upper ends.
    """
    scores = harmonic_mean(means)
    if np.nanmax(scores) > np.nanmin(scores):
        return percentile_interval(scores, level)
    ends = [mean_interval(values[:, c], means[:, c], "rate", level) for c in range(values.shape[1])]
    low, high = harmonic_mean([[low for low, _ in ends], [high for _, high in ends]])
    return float(low), float(high)
