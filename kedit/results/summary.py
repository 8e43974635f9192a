"""From result rows to the numbers of a report: `SummaryAccumulator`, and `summarise` for rows read from a file.

A summary is a function of the rows of `results.jsonl` and of nothing else, so anybody can compute it again.
A row holds one record: its probes, each with what the model said before and after the edit. Rates are in
percent; docs/metrics.md defines every one of them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from kedit.errors import KeditError
from kedit.results.groups import Values, by_kind
from kedit.results.intervals import (
    Floats,
    Scale,
    harmonic_mean,
    harmonic_of,
    mean_interval,
    percentile_interval,
    resampled_means,
)
from kedit.results.rows import METRICS, RATES, Saved, unchanged

__all__ = ["INVARIANT", "SCORED", "TITLES", "SummaryAccumulator", "flat", "summarise"]

TITLES: Mapping[str, str] = MappingProxyType(
    {"rewrite": "efficacy", "paraphrase": "generality", "neighborhood": "locality"}
)
"""The field's names of what a kind of probe measures; every other kind is called what it is."""

SCORED = ("rewrite", "paraphrase", "neighborhood")
"""Kinds whose rates the score is the harmonic mean of."""

TOKENS = "tokens_arithmetic"
TOKEN_COLUMNS = (("rewrite", "token_accuracy"), ("paraphrase", "token_accuracy"), ("neighborhood", "unchanged_tokens"))
"""What PAC's score is the arithmetic mean of (its equations 9 to 11; specs/pac.md 2.7)."""

PORT: Mapping[str, str] = MappingProxyType({"port_acc": "token_accuracy", "port_em": "port_em", "port_ll": "success"})
"""The three scores of portability (specs/steam.md 7.2) and the metric of `portability` probes that each is."""

INVARIANT = ("neighborhood", "neighborhood_prefixed")
"""Kinds whose argmax tokens an edit should leave alone."""

_Column = tuple[str, str, str]  # kind, metric, "before" or "after"
_Case = dict[_Column, tuple[float, int]]  # sum over the record's probes, and how many they are


class SummaryAccumulator:
    """Collects result rows, keeps only their sums, and summarises them at any time.

    A record that comes twice (a run that was resumed) counts once, as it was measured last.

    Args:
        measured_at: Only rows of this moment count; None takes all, and refuses to mix several.
        invariant: Kinds of probe for which `unchanged` is reported.
    """

    def __init__(self, measured_at: str | None = None, invariant: Sequence[str] = INVARIANT) -> None:
        self.measured_at = measured_at
        self.invariant = tuple(invariant)
        self._cases: dict[str, _Case] = {}
        self._moments: set[str] = set()
        self._protocols: set[str] = set()

    def __len__(self) -> int:
        return len(self._cases)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one row (see `kedit.results.rows`).

        Raises:
            KeditError: A row of another moment or protocol than those before it.
        """
        measured_at = str(row.get("measured_at", ""))
        if self.measured_at is not None and measured_at != self.measured_at:
            return
        self._moments.add(measured_at)
        self._protocols.add(json.dumps(row.get("protocol"), sort_keys=True))
        self._check()
        case: dict[_Column, Values] = defaultdict(Values)
        for kind, probe in by_kind(row["probes"]):
            before: Saved | None = probe["before"]
            after: Saved | None = probe["after"]
            test: str | None = probe.get("test")
            for side, score in (("before", before), ("after", after)):
                if score is None:
                    continue
                for metric, value_of in METRICS.items():
                    value = value_of(score)
                    if value is not None:
                        case[kind, metric, side].add(value, test)
            if probe["kind"] in self.invariant and before is not None and after is not None:
                for metric, value in unchanged(before, after).items():
                    case[kind, metric, "after"].add(value, test)
        self._cases[str(row["case_id"])] = {key: values.sum_and_count() for key, values in case.items()}

    def merge(self, other: SummaryAccumulator) -> None:
        """Take over what another accumulator (of another process) has collected."""
        self._cases.update(other._cases)
        self._moments |= other._moments
        self._protocols |= other._protocols
        self._check()

    def means(self, kind: str, metric: str, side: str = "after") -> dict[str, float]:
        """Record -> its mean over its probes of a kind on a side of the edit; records that have none are left out."""
        cells = ((case_id, case.get((kind, metric, side))) for case_id, case in self._cases.items())
        return {case_id: cell[0] / cell[1] for case_id, cell in cells if cell is not None}

    def summary(self, resamples: int = 2000, seed: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
        """`{kind: {metric: cell}}`, and under `"score"` the harmonic means, and PAC's arithmetic one.

        A cell has `before` and `after` (means over records, each record the mean over its probes of the
        kind), `change`, `ci` of `after` and `change_ci` (95 %, over records), `micro` (`before` and `after`
        as means over all probes), `n_records`, `n_probes`. What was not measured is None.
        """
        names = list(dict.fromkeys(name for case in self._cases.values() for name in case))
        if not names:
            return {}
        table = _Table(names, list(self._cases.values()), resamples, seed)
        result: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for kind, metric in dict.fromkeys((kind, metric) for kind, metric, _ in names):
            result[kind][metric] = table.cell(kind, metric)
        for kind, cells in result.items():
            if kind.partition(".")[0] == "portability":
                cells |= {name: cells[metric] for name, metric in PORT.items() if metric in cells}
        for metric in RATES:
            cell = table.score(metric)
            if cell is not None:
                result["score"][metric] = cell
        tokens = table.token_score()
        if tokens is not None:
            result["score"][TOKENS] = tokens
        return dict(result)

    def _check(self) -> None:
        if len(self._moments) > 1:
            raise KeditError(f"the results mix the moments {', '.join(sorted(self._moments))}; summarise one of them")
        if len(self._protocols) > 1:
            raise KeditError(f"the results mix {len(self._protocols)} protocols; summarise each by itself")


def summarise(
    rows: Iterable[Mapping[str, Any]], measured_at: str | None = None, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """`SummaryAccumulator.summary` of result rows, e.g. of the lines of a `results.jsonl`."""
    accumulator = SummaryAccumulator(measured_at)
    for row in rows:
        accumulator.add(row)
    return accumulator.summary(resamples, seed)


def flat(summary: Mapping[str, Mapping[str, Mapping[str, Any]]], side: str = "after") -> dict[str, float]:
    """`{"efficacy/success": 98.5, ...}` for loggers and tables; what was not measured is left out."""
    return {
        f"{TITLES.get(kind, kind)}/{metric}": cell[side]
        for kind, cells in summary.items()
        for metric, cell in cells.items()
        if cell.get(side) is not None
    }


class _Table:
    """Case values as an array, with their bootstrap means; all columns share the resampled records."""

    def __init__(self, names: list[_Column], cases: list[_Case], resamples: int, seed: int) -> None:
        self._cases = cases
        self._values: dict[_Column, Floats] = {}
        for name in names:
            cells = [case.get(name) for case in cases]
            self._values[name] = np.array([np.nan if cell is None else cell[0] / cell[1] for cell in cells])
        for kind, metric in {(kind, metric) for kind, metric, _ in names}:
            sides = [self._values.get((kind, metric, side)) for side in ("before", "after")]
            if sides[0] is not None and sides[1] is not None:
                change = sides[1] - sides[0]
                if not np.isnan(change).all():
                    self._values[kind, metric, "change"] = change
        means = resampled_means(np.stack(list(self._values.values()), 1), resamples, seed)
        self._means = {name: means[:, i] for i, name in enumerate(self._values)}

    def cell(self, kind: str, metric: str) -> dict[str, Any]:
        columns = {side: (kind, metric, side) for side in ("before", "after", "change")}
        cell: dict[str, Any] = {side: self._mean(column) for side, column in columns.items()}
        rate = metric != "magnitude"
        cell["ci"] = self._interval(columns["after"], "rate" if rate else "other")
        cell["change_ci"] = self._interval(columns["change"], "change" if rate else "other")
        cell["micro"] = {side: self._micro(columns[side]) for side in ("before", "after")}
        counted = columns["after"] if columns["after"] in self._values else columns["before"]
        cell["n_records"] = int((~np.isnan(self._values[counted])).sum())
        cell["n_probes"] = sum(case[counted][1] for case in self._cases if counted in case)
        return cell

    def score(self, metric: str) -> dict[str, Any] | None:
        """The harmonic mean of the scored kinds' rates, where all were measured."""
        cell: dict[str, Any] = {}
        resampled: dict[str, Floats] = {}
        for side in ("before", "after"):
            columns = [(kind, metric, side) for kind in SCORED]
            if not all(column in self._values for column in columns):
                cell[side] = None
                continue
            means = np.stack([self._means[column] for column in columns], 1)
            resampled[side] = harmonic_mean(means)
            cell[side] = _percent(float(harmonic_mean([np.nanmean(self._values[c]) for c in columns])))
            if side == "after":
                values = np.stack([self._values[column] for column in columns], 1)
                cell["ci"] = _percents(harmonic_of(values, means))
                cell["n_records"] = int((~np.isnan(values)).any(1).sum())
        if "after" not in resampled:
            return None
        both = len(resampled) == 2
        cell["change"] = round(cell["after"] - cell["before"], _DIGITS) if both else None
        difference = percentile_interval(resampled["after"] - resampled["before"]) if both else None
        cell["change_ci"] = None if difference is None else _percents(difference)
        return cell

    def token_score(self) -> dict[str, Any] | None:
        """PAC's score after the edits, where its three parts were measured. (Before them there is no locality.)"""
        columns = [(kind, metric, "after") for kind, metric in TOKEN_COLUMNS]
        if not all(column in self._values for column in columns):
            return None
        values = np.stack([self._values[column] for column in columns], 1)
        means = np.stack([self._means[column] for column in columns], 1).mean(1)
        return {
            "before": None,
            "after": _percent(float(np.nanmean(values, 0).mean())),
            "ci": _percents(percentile_interval(means)),
            "change": None,
            "change_ci": None,
            "n_records": int((~np.isnan(values)).any(1).sum()),
        }

    def _mean(self, column: _Column) -> float | None:
        return _percent(float(np.nanmean(self._values[column]))) if column in self._values else None

    def _micro(self, column: _Column) -> float | None:
        cells = [case[column] for case in self._cases if column in case]
        return _percent(sum(total for total, _ in cells) / sum(n for _, n in cells)) if cells else None

    def _interval(self, column: _Column, scale: Scale) -> list[float] | None:
        if column not in self._values:
            return None
        return _percents(mean_interval(self._values[column], self._means[column], scale))


_DIGITS = 4


def _percent(share: float) -> float:
    return round(100 * share, _DIGITS)


def _percents(interval: tuple[float, float]) -> list[float]:
    return [_percent(end) for end in interval]
