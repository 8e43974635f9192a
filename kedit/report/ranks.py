"""Who is ahead, by the classic measures and by free answers, on the same edits: which ranks change.

A rank's interval is that of the bootstrap over the records that all arms have: every resample ranks all arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kedit.results.intervals import Floats, resampled_means
from kedit.results.summary import TOKENS
from kedit.sweeps.compare import Table
from kedit.sweeps.measures import Measure

CLASSIC = ("score/success", f"score/{TOKENS}", "efficacy/success", "efficacy/exact")
"""What papers rank by; the first of them that a table has is what free answers are put beside.

ZsRE has not the first: its neighbours have no rival answer."""

FREE = "wild"
"""How a metric of free answers with a natural stop begins."""


@dataclass(frozen=True)
class Rank:
    """An arm's place by one measure; equals share the first of their places.

    Attributes:
        value: Its number.
        place: From 1.
        tied: Whether another arm has the same number.
        ends: 95 % interval of the place.
        moved: Places gained against the first measure; negative: lost.
    """

    value: float
    place: int
    tied: bool
    ends: tuple[int, int]
    moved: int


@dataclass(frozen=True)
class Ranking:
    """All places of a table.

    Attributes:
        measures: Those ranked by, the classic ones first.
        free: How many of them, from the end, are of free answers.
        arms: Arm -> its rank by each measure, in the order of the first.
        records: Over how many records.
        agreement: Kendall's tau-b of each measure with the first; None where all arms are equal.
        swapped: Pairs of arms that each measure puts in the opposite order of the first.
        pairs: All pairs of arms.
    """

    measures: tuple[Measure, ...]
    free: int
    arms: dict[str, tuple[Rank, ...]]
    records: int
    agreement: tuple[float | None, ...]
    swapped: tuple[int, ...]
    pairs: int


def ranking(table: Table, resamples: int = 2000) -> Ranking | None:
    """The ranks of a table's arms.

    Args:
        table: The table.
        resamples: Of the bootstrap.

    Returns:
        None where fewer than two arms have a classic measure and one of free answers, or they share no record.
    """
    classic = [measure for name in CLASSIC for measure in table.measures if measure.name == name]
    free = [measure for measure in table.measures if measure.columns[0][1].startswith(FREE)]
    if not classic or not free:
        return None
    measures = (*classic, *free)
    arms = [arm for arm in table.arms if all(measure.name in arm.cells for measure in measures)]
    shared = [set(one.sample.cases) for arm in arms for one in table.members[arm.name]]
    cases = [case for case in (_cases(table, arms[0].name) if arms else []) if all(case in own for own in shared)]
    if len(arms) < 2 or not cases:
        return None
    values = np.array([[arm.cells[measure.name].mean for measure in measures] for arm in arms])  # [arms, measures]
    drawn = _drawn(table, [arm.name for arm in arms], measures, cases, resamples)
    low, high = (np.percentile(places_of(drawn), q, axis=0, method="nearest") for q in (2.5, 97.5))
    places = places_of(values)
    order = np.argsort(places[:, 0], kind="stable")
    found = {
        arms[a].name: tuple(
            Rank(
                float(values[a, m]),
                int(places[a, m]),
                int((places[:, m] == places[a, m]).sum()) > 1,
                (int(low[a, m]), int(high[a, m])),
                int(places[a, 0] - places[a, m]),
            )
            for m in range(len(measures))
        )
        for a in order
    }
    taus = tuple(kendall(values[:, 0], values[:, m]) for m in range(len(measures)))
    swapped = tuple(swapped_pairs(values[:, 0], values[:, m]) for m in range(len(measures)))
    return Ranking(measures, len(free), found, len(cases), taus, swapped, len(arms) * (len(arms) - 1) // 2)


def _cases(table: Table, arm: str) -> list[str]:
    return list(dict.fromkeys(case for one in table.members[arm] for case in one.sample.cases))


def _drawn(
    table: Table, arms: Sequence[str], measures: Sequence[Measure], cases: Sequence[str], resamples: int
) -> Floats:
    """`[resamples, arms, measures]`: every arm's numbers on the same resampled records; a seed's mean is its arm's."""
    columns = list(dict.fromkeys(column for measure in measures for column in measure.columns))
    values = []
    for arm in arms:
        seeds = np.stack([one.sample.values(cases, columns) for one in table.members[arm]])
        counts = (~np.isnan(seeds)).sum(0)
        sums = np.nansum(seeds, axis=0)
        values.append(np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0))
    means = resampled_means(np.concatenate(values, axis=1), resamples).reshape(resamples, len(arms), len(columns))
    scores = [measure.of(means[..., [columns.index(c) for c in measure.columns]]) for measure in measures]
    return np.nan_to_num(np.stack(scores, axis=-1), nan=-np.inf)


def places_of(values: Floats) -> NDArray[np.int64]:
    """`[..., arms, measures]` numbers -> places from 1, the largest first."""
    rounded = np.round(values, 9)  # sums in another order differ in the last bit
    return 1 + np.stack([(rounded > rounded[..., [a], :]).sum(-2) for a in range(values.shape[-2])], axis=-2)


def _order(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Signs of all pairs' differences."""
    i, j = np.triu_indices(len(x), 1)
    return np.sign(np.round(x[i] - x[j], 9)), np.sign(np.round(y[i] - y[j], 9))


def swapped_pairs(x: Floats, y: Floats) -> int:
    """Pairs of arms that two measures `[arms]` each put in opposite orders."""
    first, other = _order(x, y)
    return int((first * other < 0).sum())


def kendall(x: Floats, y: Floats) -> float | None:
    """Kendall's tau-b of two measures `[arms]` each; None where one of them has all arms equal."""
    first, other = _order(x, y)
    scale = float(np.sqrt((first**2).sum() * (other**2).sum()))
    return float((first * other).sum()) / scale if scale else None
