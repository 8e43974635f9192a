"""`Score`: what a task says of one model; and a run's figures, before and after, in percent where they are rates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from rich.table import Table

from kedit.errors import KeditError

BEFORE = "before"
"""Instead of a moment of measurement: the unedited model."""

FILE = "general.json"
"""In the folder of a run."""

_RATES = ("acc", "exact_match", "f1", "mcc", "em", "pass@1")
_DIGITS = 4


@dataclass(frozen=True)
class Score:
    """One metric of one task.

    Attributes:
        task: Name of the task.
        metric: Name of the metric, with the harness's filter behind a comma where it is not `none`.
        value: As the task gives it: a share in [0, 1] of a rate.
        stderr: Its standard error over the questions; None where the task gives none.
        n: Questions; None where the task does not say.
        items: 1.0 and 0.0 of every question, where they are known: then the change has a paired standard error.
    """

    task: str
    metric: str
    value: float
    stderr: float | None = None
    n: int | None = None
    items: tuple[float, ...] = ()

    @property
    def is_rate(self) -> bool:
        """Whether it is a share, which reports give in percent."""
        words = self.metric.partition(",")[0].split("_")
        return any(rate in ("_".join(words), *words) for rate in _RATES)


@dataclass(frozen=True)
class Measured:
    """What was measured of one model.

    Attributes:
        measured_at: `before`, or a moment as rows of results have it: `edit`, `end`, `at_10`.
        model: Which model: a case id, `batch-0`, `10 edits`; empty of the unedited one.
        scores: One per task and metric.
    """

    measured_at: str
    model: str
    scores: tuple[Score, ...]

    def as_json(self) -> dict[str, Any]:
        """For a file; `of_json` reads it. Items are a text of 0 and 1; others are left out."""
        scores = []
        for score in self.scores:
            own = {name: value for name, value in asdict(score).items() if value is not None}
            whole = score.items and set(score.items) <= {0.0, 1.0}
            own["items"] = "".join(str(int(item)) for item in score.items) if whole else ""
            scores.append(own)
        return {"measured_at": self.measured_at, "model": self.model, "scores": scores}

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Measured:
        """The same.

        Raises:
            KeyError, TypeError, ValueError: The file says something else.
        """
        scores = [Score(**{**score, "items": tuple(map(float, score["items"]))}) for score in value["scores"]]
        return cls(str(value["measured_at"]), str(value["model"]), tuple(scores))


def mean_score(task: str, metric: str, items: Sequence[float]) -> Score:
    """The mean of some items with its standard error, s / sqrt(n)."""
    return Score(task, metric, sum(items) / len(items), _stderr(items), len(items), tuple(items))


def figures(measured: Iterable[Measured]) -> list[dict[str, Any]]:
    """One line per moment, task and metric: `before`, `after`, `change` and their standard errors.

    Rates are in percent. Where several edited models were measured (`models`), `after` is the mean over them. Its
    standard error is the mean of theirs: they answer the same questions, so it does not fall with their number.

    Args:
        measured: Of one run. Without edited models, lines have no `after`.
    """
    at: dict[str, dict[tuple[str, str], list[Score]]] = {}
    for one in measured:
        for score in one.scores:
            at.setdefault(one.measured_at, {}).setdefault((score.task, score.metric), []).append(score)
    before = {name: scores[0] for name, scores in at.pop(BEFORE, {}).items()}
    if not at:
        return [_line(BEFORE, first, []) for first in before.values()]
    lines = []
    for moment, of in at.items():
        lines += [_line(moment, before.get(name), scores) for name, scores in of.items()]
    return lines


def figures_of(folder: Path) -> list[dict[str, Any]]:
    """The figures in a run's folder; none where general ability was not measured.

    Raises:
        KeditError: The file is damaged.
    """
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))["figures"]
        _ = [(line["task"], line["metric"], line["measured_at"]) for line in found]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        raise KeditError(f"{folder / FILE} is damaged or cannot be read") from None
    return found


def figures_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """The figures for a terminal, with standard errors."""
    edited = any("after" in line for line in lines)
    table = Table(title="general ability (+- standard error)", title_justify="left")
    table.add_column("task")
    table.add_column("metric")
    several = len({line["measured_at"] for line in lines}) > 1
    for column in (*(("measured",) if several else ()), "n", "before", *(("after", "change") if edited else ())):
        table.add_column(column, justify="right")
    for line in lines:
        cells = [line["task"], line["metric"], *((line["measured_at"],) if several else ())]
        cells.append("" if line["n"] is None else str(line["n"]))
        for side in ("before", *(("after", "change") if edited else ())):
            cells.append(_cell(line.get(side), line.get(f"{side}_stderr"), "+" if side == "change" else ""))
        table.add_row(*cells)
    return table


def _line(moment: str, before: Score | None, after: Sequence[Score]) -> dict[str, Any]:
    first = before or after[0]
    factor = 100.0 if first.is_rate else 1.0
    line: dict[str, Any] = {"task": first.task, "metric": first.metric, "measured_at": moment, "n": first.n}
    line |= {"unit": "percent" if first.is_rate else "as the task gives it"}
    if before is not None:
        line |= {"before": _rounded(factor, before.value), "before_stderr": _rounded(factor, before.stderr)}
    if after:
        errors = [score.stderr for score in after if score.stderr is not None]
        mean = sum(score.value for score in after) / len(after)
        error = sum(errors) / len(errors) if len(errors) == len(after) else None
        line |= {"after": _rounded(factor, mean), "after_stderr": _rounded(factor, error), "models": len(after)}
        if before is not None:
            line |= {
                "change": _rounded(factor, mean - before.value),
                "change_stderr": _rounded(factor, _paired(before, after)),
            }
    return line


def _paired(before: Score, after: Sequence[Score]) -> float | None:
    """Standard error of the mean change of a question; None where the questions' own results are not known."""
    if not before.items or any(len(score.items) != len(before.items) for score in after):
        return None
    changes = [sum(score.items[i] for score in after) / len(after) - first for i, first in enumerate(before.items)]
    return _stderr(changes)


def _stderr(values: Sequence[float]) -> float | None:
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    return sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _rounded(factor: float, value: float | None) -> float | None:
    return None if value is None else round(factor * value, _DIGITS)


def _cell(value: float | None, error: float | None, sign: str) -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.1f}" + ("" if error is None else f" +- {error:.1f}")
