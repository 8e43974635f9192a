"""Numbers of one arm of a comparison, and differences between two: means over records and seeds, with intervals.

Intervals are over records (`kedit.results.intervals`); seeds are averaged inside every resample, so that an interval
says nothing of other seeds. How much these differ is told by the values of each.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kedit.results.intervals import Floats, harmonic_of, mean_interval, percentile_interval, resampled_means
from kedit.sweeps.measures import Column, Measure, Sample

Values = list[Floats]  # of each seed: `[records, columns]`, NaN where a record lacks one


@dataclass(frozen=True)
class Cell:
    """A number with what is known of its uncertainty; percent, bits or steps.

    Attributes:
        mean: Over records, and over seeds.
        ci: 95 % bootstrap interval over records.
        per_seed: The same for each seed.
        n: Records that have it; of a difference, those that both arms have, or None where it is not paired.
    """

    mean: float
    ci: tuple[float, float]
    per_seed: tuple[float, ...]
    n: int | None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds, where there are several."""
        return statistics.stdev(self.per_seed) if len(self.per_seed) > 1 else None

    @property
    def off_zero(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.ci[0] > 0 or self.ci[1] < 0


def cases_of(samples: Sequence[Sample]) -> list[str]:
    """The records of several runs, in the first one's order."""
    return list(dict.fromkeys(case for sample in samples for case in sample.cases))


def own_cells(samples: Sequence[Sample], measures: Sequence[Measure], resamples: int) -> dict[str, Cell]:
    """An arm's own numbers; what was not measured with every seed is left out."""
    columns = _columns(measures)
    values = _values(samples, cases_of(samples), columns)
    drawn = [resampled_means(one, resamples) for one in values]
    cells = {}
    for measure in measures:
        at = [columns.index(column) for column in measure.columns]
        own = [one[:, at] for one in values]
        if any(np.isnan(one).all(0).any() for one in own):
            continue
        means = [one[:, at] for one in drawn]
        mean, scores = _mean(own), np.mean([measure.of(one) for one in means], axis=0)
        if measure.how == "one":
            ci = mean_interval(mean[:, 0], scores, measure.scale)
        elif measure.how == "harmonic" and len(samples) == 1:
            ci = harmonic_of(mean, means[0])
        else:
            ci = percentile_interval(scores)
        cells[measure.name] = _cell(measure, _points(measure, own), ci, _counted(mean))
    return cells


def paired_cells(
    samples: Sequence[Sample], others: Sequence[Sample], measures: Sequence[Measure], resamples: int
) -> dict[str, Cell]:
    """Record by record, seed by seed: the samples minus the others, over the records in both."""
    known = {case for other in others for case in other.cases}
    cases, columns = [case for case in cases_of(samples) if case in known], _columns(measures)
    if not cases:
        return {}
    pairs = zip(_values(samples, cases, columns), _values(others, cases, columns), strict=True)
    both = [np.stack([np.where(np.isnan(y), np.nan, x), np.where(np.isnan(x), np.nan, y)], 1) for x, y in pairs]
    flat = [resampled_means(one.reshape(len(cases), -1), resamples) for one in both]
    drawn = [one.reshape(resamples, 2, len(columns)) for one in flat]
    cells = {}
    for measure in measures:
        at = [columns.index(column) for column in measure.columns]
        own = [one[..., at] for one in both]  # of each seed: [records, 2, columns]
        if any(np.isnan(one).all(0).any() for one in own):
            continue
        sides = [measure.of(one[..., at]) for one in drawn]
        scores = np.mean([side[:, 0] - side[:, 1] for side in sides], axis=0)
        change = _mean([one[:, 0] - one[:, 1] for one in own])
        if measure.how == "one":
            ci = mean_interval(change[:, 0], scores, "other" if measure.scale == "other" else "change")
        else:
            ci = percentile_interval(scores)
        points = [_points(measure, [one[:, side] for one in own]) for side in (0, 1)]
        ahead = [x - y for x, y in zip(points[0], points[1], strict=True)]
        cells[measure.name] = _cell(measure, ahead, ci, _counted(change))
    return cells


def unpaired_cells(
    samples: Sequence[Sample],
    others: Sequence[Sample],
    own: Mapping[str, Cell],
    theirs: Mapping[str, Cell],
    measures: Sequence[Measure],
    resamples: int,
) -> dict[str, Cell]:
    """The samples' means minus the others', each resampled by itself.

    Args:
        samples: Of one arm.
        others: Of the arm that it is compared with.
        own: The samples' `own_cells`.
        theirs: Those of the others.
        measures: The measures.
        resamples: Of the bootstrap.
    """
    columns = _columns(measures)
    drawn = [
        [resampled_means(one, resamples, seed) for one in _values(side, cases_of(side), columns)]
        for seed, side in enumerate((samples, others))
    ]
    cells = {}
    for measure in measures:
        if measure.name not in own or measure.name not in theirs:
            continue
        at = [columns.index(column) for column in measure.columns]
        scores = [np.mean([measure.of(one[:, at]) for one in side], axis=0) for side in drawn]
        x, y, difference = own[measure.name], theirs[measure.name], scores[0] - scores[1]
        low, high = (measure.factor * end for end in percentile_interval(difference))
        if np.nanmax(difference) == np.nanmin(difference):  # the bootstrap says nothing: as far as both may be off
            low, high = x.ci[0] - y.ci[1], x.ci[1] - y.ci[0]
        cells[measure.name] = Cell(x.mean - y.mean, (low, high), (), None)
    return cells


def _columns(measures: Sequence[Measure]) -> list[Column]:
    """What all measures are made of, each once: they share their resamples."""
    return list(dict.fromkeys(column for measure in measures for column in measure.columns))


def _values(samples: Sequence[Sample], cases: Sequence[str], columns: Sequence[Column]) -> Values:
    return [sample.values(cases, columns) for sample in samples]


def _mean(values: Values) -> Floats:
    """Over seeds, of every record; a record that a seed lacks has the mean of the others."""
    counts = np.sum([~np.isnan(one) for one in values], axis=0)
    sums = np.sum([np.nan_to_num(one) for one in values], axis=0)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)


def _points(measure: Measure, values: Sequence[Floats]) -> list[float]:
    """A measure's value for each seed."""
    return [float(measure.of(np.nanmean(one, 0))) for one in values]


def _counted(values: Floats) -> int:
    return int((~np.isnan(values)).any(1).sum())


def _cell(measure: Measure, points: Sequence[float], ci: tuple[float, float], n: int) -> Cell:
    per_seed = tuple(measure.factor * point for point in points)
    return Cell(statistics.fmean(per_seed), (measure.factor * ci[0], measure.factor * ci[1]), per_seed, n)
