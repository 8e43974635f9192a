"""What an arm of a comparison is measured by: names of measures, and a run's values of them, record by record.

A measure is called as tables call it: KIND/METRIC (`efficacy/success`, `paraphrase_ood/exact`), `score/METRIC`, or one
of `ONCE`. Definitions: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from kedit.errors import KeditError, shown
from kedit.results.intervals import Floats, Scale, harmonic_mean
from kedit.results.robustness import FIGURES
from kedit.results.rows import METRICS, RATES, edits_of
from kedit.results.summary import PORT, SCORED, TITLES, TOKEN_COLUMNS, TOKENS, SummaryAccumulator

Column = tuple[str, str]  # kind of probe and metric; ("", name) of what a row says once
Side = Literal["before", "after"]

ONCE = ("fluency", "consistency", "steps", "delta_over_weight", "perplexity")
"""What a record has one of: bits, percent, optimiser steps of its edit, ||Delta W|| / ||W||, perplexity of a text."""
ABILITY = "ability"
"""`ability/TASK`, `ability/TASK/METRIC`: general ability, of the edited model as a whole; rates in percent."""
EDIT = ("steps", "delta_over_weight")  # of them, what the edit says of itself
COSTS: Mapping[str, tuple[float, str, int]] = MappingProxyType(
    {
        "cpu_seconds": (1.0, "s", 2),
        "bytes_per_edit": (1e-3, "kB", 1),
        "delta_bytes": (1e-3, "kB", 1),
        "peak_memory": (1e-6, "MB", 0),
    }
)
"""What an edit or a run cost -> factor, unit, digits. The first two are of every record, the others of the run."""

SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "main": (
            "efficacy/success", "generality/success", "locality/success", "score/success", "efficacy/exact",
            "generality/exact", "locality/unchanged", "portability/port_acc", "portability/port_em",
            "portability/port_ll", "fluency", "consistency",
        ),
        "tokens": (*(f"{TITLES[kind]}/{metric}" for kind, metric in TOKEN_COLUMNS), f"score/{TOKENS}",
                   "efficacy/exact", "steps"),
        "robust": (*(f"{TITLES.get(kind, kind)}/{metric}" for kind, metric in FIGURES), "fluency"),
        "methods": (
            "efficacy/success", "generality/success", "locality/success", "score/success", f"score/{TOKENS}",
            "efficacy/exact", "generality/exact", "locality/unchanged", "efficacy/wild", "cpu_seconds", "peak_memory",
            "delta_bytes", "perplexity",
        ),
    }
)  # fmt: skip
"""Measures that belong together: of most papers, of PAC's, of REP's, of a table of all methods."""


@dataclass(frozen=True)
class Measure:
    """One column of a comparison.

    Attributes:
        name: What it is called.
        columns: The quantities that it is made of.
        how: What makes one of them where they are several: their harmonic or arithmetic mean.
        scale: Rate or not, for its interval.
        factor: 100 for what is given in percent.
        digits: Behind the point, in tables.
        unit: Where it is neither percent nor without one.
    """

    name: str
    columns: tuple[Column, ...]
    how: Literal["one", "harmonic", "arithmetic"] = "one"
    scale: Scale = "rate"
    factor: float = 100.0
    digits: int = 1
    unit: str = ""

    def of(self, means: Floats) -> Floats:
        """`[..., columns]` means -> `[...]`, before `factor`."""
        if self.how == "one":
            return means[..., 0]
        return harmonic_mean(means) if self.how == "harmonic" else means.mean(-1)

    @property
    def kind(self) -> str:
        """Kind of probe, the first of a score's."""
        return self.columns[0][0]


def measures_of(names: str) -> list[Measure]:
    """The measures of a text: the name of one of `SETS`, or names with commas between them.

    Raises:
        KeditError: Something that is no measure; says what there is.
    """
    words = [word for name in names.split(",") if name.strip() for word in SETS.get(name.strip(), (name.strip(),))]
    if not words:
        raise KeditError(f"metrics: expects {', '.join(SETS)}, or names such as efficacy/exact,locality/unchanged")
    return [_measure(word) for word in dict.fromkeys(words)]


def _measure(name: str) -> Measure:
    if name in ONCE:
        digits = {"fluency": 2, "delta_over_weight": 3, "perplexity": 2}.get(name, 1)
        return Measure(
            name, (("", name),), scale="other", factor=100.0 if name == "consistency" else 1.0, digits=digits
        )
    if name in COSTS:
        factor, unit, digits = COSTS[name]
        return Measure(name, (("", name),), scale="other", factor=factor, digits=digits, unit=unit)
    title, _, metric = name.partition("/")
    if title == ABILITY and metric:
        return Measure(name, (("", name),), scale="other", factor=1.0)
    if title == "score" and metric == TOKENS:
        return Measure(name, TOKEN_COLUMNS, "arithmetic")
    if title == "score" and metric in RATES:
        return Measure(name, tuple((kind, metric) for kind in SCORED), "harmonic")
    kind = next((kind for kind, called in TITLES.items() if called == title), title)
    metric = PORT.get(metric, metric) if kind.partition(".")[0] == "portability" else metric
    known = (*METRICS, "unchanged", "unchanged_tokens")
    if not kind or kind == "score" or metric not in known:
        raise KeditError(
            f"metrics: there is no {shown(name)}; there are {', '.join((*SETS, *ONCE, *COSTS, f'{ABILITY}/TASK'))}, "
            f"and KIND/METRIC\n"
            f"KIND: a kind of probe or its title, score; METRIC: {', '.join(known)}"
        )
    return Measure(name, ((kind, metric),), scale="other" if metric == "magnitude" else "rate")


class Sample:
    """What the rows of one run say at one measuring point.

    Args:
        measured_at: The measuring point; rows of others are passed over.
        first: Only so many records count, the first that were edited; None: all.
    """

    def __init__(self, measured_at: str, first: int | None = None) -> None:
        self.measured_at, self.first = measured_at, first
        self._board = SummaryAccumulator(measured_at)
        self._once: dict[tuple[str, Side], dict[str, float]] = {}
        self._cases: dict[str, None] = {}

    @property
    def cases(self) -> list[str]:
        """The records, in the order in which they were first measured."""
        return list(self._cases)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one row of `results.jsonl`."""
        if row["measured_at"] != self.measured_at:
            return
        case = str(row["case_id"])
        if self.first is not None and case not in self._cases and len(self._cases) >= self.first:
            return
        self._board.add(row)
        self._cases[case] = None
        for side in ("before", "after"):
            for name in ONCE:
                value = _once(row, name, side)
                if value is not None:
                    self._once.setdefault((name, side), {})[case] = value

    def add_costs(self, costs: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any], since: int = 0) -> None:
        """Take what the run says of its costs.

        Args:
            costs: Case id -> its line of `costs.jsonl`.
            summary: The run's `summary.json`.
            since: At a number of edits: those made before the last such number do not count.
        """
        lines = {case: costs[case] for case in self.cases[since:] if case in costs}
        for name, key in (("cpu_seconds", "cpu_seconds"), ("bytes_per_edit", "delta_bytes")):
            self._once[name, "after"] = {case: line[key] for case, line in lines.items() if line[key] is not None}
        if edits_of(self.measured_at) is None:
            peak = summary.get("timing", {}).get("peak_memory")
            for name, value in (("delta_bytes", summary.get("delta_bytes")), ("peak_memory", peak)):
                self._once[name, "after"] = {} if value is None else dict.fromkeys(self.cases, float(value))

    def add_ability(self, figures: Iterable[Mapping[str, Any]]) -> None:
        """Take what `general.json` says at this measuring point: all records have the same model, or its mean."""
        for line in figures:
            if line.get("measured_at") != self.measured_at:
                continue
            names = [f"{ABILITY}/{line['task']}/{line['metric']}", f"{ABILITY}/{line['task']}"]
            for name in names if (names[1], "after") not in self._once else names[:1]:
                for side in ("before", "after"):
                    if (value := line.get(side)) is not None:
                        self._once[name, side] = dict.fromkeys(self.cases, float(value))

    def column(self, column: Column, side: Side = "after") -> dict[str, float]:
        """Record -> its value; a share in [0, 1] for rates. Records that lack it are left out."""
        kind, metric = column
        return self._board.means(kind, metric, side) if kind else self._once.get((metric, side), {})

    def values(self, cases: Sequence[str], columns: Sequence[Column], side: Side = "after") -> Floats:
        """`[records, columns]`, NaN where a record lacks one."""
        found = [self.column(column, side) for column in columns]
        return np.array([[of.get(case, np.nan) for of in found] for case in cases]).reshape(len(cases), len(columns))


def samples(rows: Iterable[Mapping[str, Any]], first: int | None = None) -> dict[str, Sample]:
    """The samples of all measuring points (`edit`, `end`, `editor`, `at_10` ...), from one pass over the rows.

    Args:
        rows: Of a run.
        first: Only so many records count, the first that were edited; None: all.
    """
    found: dict[str, Sample] = {}
    for row in rows:
        found.setdefault(row["measured_at"], Sample(row["measured_at"], first)).add(row)
    return found


def _once(row: Mapping[str, Any], name: str, side: Side) -> float | None:
    if name in EDIT:
        return (row.get("edit") or {}).get(name) if side == "after" else None
    if name == "perplexity":
        return (row.get("perplexity") or {}).get(side)
    text = (row.get("texts") or {}).get(side) or {}
    if text.get(name) is not None:
        return text[name]
    return (row.get("fluency") or {}).get(side) if name == "fluency" else None
