"""What runs wrote beside their results: PAC's paths, REP's similarity, STEAM's cosines, general ability, a judge.

Each is shown where a run has it. A file that is damaged is named in a note, and left out.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kedit.ability.scores import FILE as GENERAL
from kedit.judge.file import LINES, REPORT
from kedit.judge.prompt import RIGHT, WRONG
from kedit.report.grid import Column, Entry, Grid, number, texts
from kedit.text.lines import cut, one_line

Rows = list[dict[str, Any]]
T = TypeVar("T")

_TABLES = {
    "importance.csv": {"layer": int, "kind": str, "rank": int, "score": float},
    "similarity.csv": {"layer": int, "kind": str, "tokens": str, "n_keys": int, "mean_before": float},
    "latent_cosine.csv": {"layer": int, "view": str, "arm": str, "mean": float},
}
"""File -> columns that are read of it, and what stands in them."""

_VERDICTS = (WRONG, RIGHT)  # of a judge; any other word is none
_SPLIT = 40  # answers shown of which judge and exact match say otherwise
_SAID = 120


@dataclass
class RunFiles:
    """The files of all runs.

    Attributes:
        importance: Run -> rows of `importance.csv`.
        similarity: Run -> rows of `similarity.csv`.
        cosine: Run -> rows of `latent_cosine.csv`.
        general: Run -> figures of `general.json`.
        judges: Run -> `judge.json`.
        split: Run -> lines of `judge.jsonl` in which the judge and exact match differ.
        notes: A line for each file that is damaged.
    """

    importance: dict[str, Rows] = field(default_factory=dict)
    similarity: dict[str, Rows] = field(default_factory=dict)
    cosine: dict[str, Rows] = field(default_factory=dict)
    general: dict[str, Rows] = field(default_factory=dict)
    judges: dict[str, dict[str, Any]] = field(default_factory=dict)
    split: dict[str, Rows] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def run_files(folders: Mapping[str, Path]) -> RunFiles:
    """Read what there is.

    Args:
        folders: Run -> its folder.
    """
    found = RunFiles()
    places = {"importance.csv": found.importance, "similarity.csv": found.similarity, "latent_cosine.csv": found.cosine}
    for name, folder in folders.items():
        for file, place in places.items():
            _keep(folder / file, lambda path, file=file: _csv(path, _TABLES[file]), place, name, found.notes)
        _keep(folder / GENERAL, _general, found.general, name, found.notes)
        _keep(folder / REPORT, _judge, found.judges, name, found.notes)
        _keep(folder / LINES, _split_answers, found.split, name, found.notes)
    return found


def similarity_grid(runs: Mapping[str, Rows]) -> Grid:
    """REP's r(k), before and after the pathway: a row per run, layer, kind of query and reading."""
    columns = [Column(name, text=True) for name in ("arm", "layer", "query", "tokens")]
    columns += [Column(name) for name in ("r before", "r after", "r ≥ 0.8 before", "r ≥ 0.8 after")]
    columns += [Column("gate open", "%"), Column("keys")]
    rows = []
    for name, lines in runs.items():
        for line in lines:
            head = texts([name, line["layer"], line["kind"].replace("_", " "), line["tokens"].replace("_", " ")])
            sides = [number(_float(line.get(f"mean_{side}")), 3) for side in ("before", "after")]
            shares = [number(_float(line.get(f"delivered_{side}")), 0) for side in ("before", "after")]
            rows.append((*head, *sides, *shares, number(_float(line.get("open")), 0), number(line["n_keys"], 0)))
    notes = (
        "r: share of an edit that reaches a key, mean over keys (similarity.csv); "
        "forms of the subject should have 1, all else 0.",
    )
    return Grid("rep-similarity", "Similarity to the edited key", tuple(columns), tuple(rows), notes)


def general_grid(runs: Mapping[str, Rows]) -> Grid:
    """General ability before and after: a row per run, task and metric."""
    columns = [Column(name, text=True) for name in ("arm", "task", "metric", "measured at")]
    columns += [Column(name) for name in ("before", "after", "change", "items")]
    rows = []
    for name, figures in runs.items():
        for line in figures:
            head = texts([name, line["task"], line["metric"], line.get("measured_at")])
            before, after = (_with_error(line, side) for side in ("before", "after"))
            first, last = (_float(line.get(side)) for side in ("before", "after"))
            change = number(None if first is None or last is None else last - first, 2, "+")
            rows.append((*head, before, after, change, number(line.get("n"), 0)))
    return Grid("general", "General ability", tuple(columns), tuple(rows), ("± standard error.",))


def judge_grid(runs: Mapping[str, dict[str, Any]]) -> Grid:
    """What a judge said, beside exact match: a row per run, kind of probe and side."""
    columns = [Column(name, text=True) for name in ("arm", "judge", "kind", "side")]
    columns += [Column(name, "%") for name in ("judged right", "exact match", "agreement")] + [Column("answers")]
    rows = []
    for name, judge in runs.items():
        for line in judge["figures"]:
            numbers = [number(line.get(key)) for key in ("judged", "exact_match", "agreement")]
            head = texts([name, judge.get("model"), line["kind"], line["side"]])
            rows.append((*head, *numbers, number(line.get("n"), 0)))
    return Grid("judge", "A judge's verdicts beside exact match", tuple(columns), tuple(rows))


def split_grid(runs: Mapping[str, Rows]) -> Grid:
    """Answers of which the judge and exact match say otherwise, the first of all runs."""
    columns = [
        Column(name, text=True) for name in ("arm", "record", "prompt", "wanted", "said", "judge", "exact match")
    ]
    all_lines = [(name, line) for name, lines in runs.items() for line in lines]
    rows = []
    for name, line in all_lines[:_SPLIT]:
        said = [cut(one_line(str(line[key])), _SAID) for key in ("text", "answer", "said")]
        rows.append(texts([name, line["case_id"], *said, line["verdict"], "yes" if line["exact_match"] else "no"]))
    more = len(all_lines) - len(rows)
    notes = (f"{more} more in judge.jsonl of the runs.",) if more else ()
    return Grid("judge-split", "Where judge and exact match differ", tuple(columns), tuple(rows), notes)


def _keep(path: Path, read: Callable[[Path], T], place: dict[str, T], name: str, notes: list[str]) -> None:
    if not path.is_file():
        return
    try:
        found = read(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error):
        notes.append(f"left out, as it is damaged: {path}")
        return
    if found:
        place[name] = found


def _csv(path: Path, columns: Mapping[str, Callable[[str], Any]]) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        rows: Rows = []
        for row in csv.DictReader(file):
            rows.append({**row, **{name: kind(row[name]) for name, kind in columns.items() if row[name] != ""}})
    return [row for row in rows if all(_finite(row.get(name)) for name in columns)]


def _general(path: Path) -> Rows:
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    for line in figures:
        _ = str(line["task"]), str(line["metric"])
        for side in ("before", "after"):
            _ = line.get(side) is None or float(line[side])
    return list(figures)


def _judge(path: Path) -> dict[str, Any]:
    judge = json.loads(path.read_text(encoding="utf-8"))
    for line in judge["figures"]:
        _ = str(line["kind"]), str(line["side"])
        for key in ("judged", "exact_match", "agreement"):
            _ = line.get(key) is None or float(line[key])
    return dict(judge)


def _split_answers(path: Path) -> Rows:
    found: Rows = []
    for text in path.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        _ = line["case_id"], line["text"], line["answer"], line["said"]
        judged = line["exact_match"] is not None and line["verdict"] in _VERDICTS
        if judged and line["verdict"] != _VERDICTS[bool(line["exact_match"])]:
            found.append(line)
    return found


def _with_error(line: Mapping[str, Any], side: str) -> Entry:
    entry, error = number(_float(line.get(side)), 2), _float(line.get(f"{side}_stderr"))
    return entry if error is None else Entry(f"{entry.text} ± {error:.2f}", value=entry.value)


def _float(value: Any) -> float | None:
    return None if value is None or value == "" else float(value)


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def labelled(names: Sequence[tuple[str, str]]) -> list[str]:
    """Arm and seed of every run -> what it is called, the seed only where its arm has several."""
    arms = [arm for arm, _ in names]
    return [arm if arms.count(arm) == 1 else f"{arm}, {seed}" for arm, seed in names]
