"""Results of a sweep side by side: which runs can be compared, and their numbers as `summary.json` has them.

Runs stand in one table only if protocol, data and moment are the same. The one thing computed here is the mean and
the spread over seeds. What it looks like is `kedit.sweeps.collect_tables`'s business.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kedit.results.tables import shown_metrics
from kedit.runtime.run_folder import SUMMARY
from kedit.sweeps.folder import Numbered, SweepFolder
from kedit.sweeps.spec import Task

COLUMNS = (
    "task", "index", "config", "method", "editor", "model", "model_fingerprint", "dtype", "seed", "regime", "measured",
    "measured_at", "data", "data_fingerprint", "records", "failed_records", "protocol", "kind", "metric", "before",
    "after", "ci_low", "ci_high", "change", "change_ci_low", "change_ci_high", "n_records", "n_probes", "commit",
)  # fmt: skip
"""Of the CSV file; the grid's axes follow, as `grid:AXIS`."""


@dataclass(frozen=True)
class Run:
    """A finished task with its summary."""

    numbered: Numbered
    summary: Mapping[str, Any]

    @property
    def method(self) -> str:
        """The method's class."""
        return self.summary["method"]["method"]


@dataclass(frozen=True)
class Line:
    """One number of a table: a setting's, over its seeds.

    Attributes:
        kind: Kind of probe.
        metric: What was measured.
        setting: What the configuration and the grid's values are called, without seeds.
        before: Mean over seeds, in percent; None where it was not measured.
        after: The same after the edit.
        ci: 95 % interval over records, where there is one seed.
        spread: Standard deviation of `after` over seeds, where there are several.
        seeds: How many there are.
    """

    kind: str
    metric: str
    setting: str
    before: float | None
    after: float | None
    ci: tuple[float, float] | None
    spread: float | None
    seeds: int


@dataclass(frozen=True)
class Alike:
    """What runs that can be compared have in common.

    Attributes:
        protocol: Theirs, as the summaries have it.
        data: What the summaries say of the data.
        measured_at: When it was measured: `edit`, `end`, `editor`.
        differs: What sets this group's protocol apart from the others', e.g. `scoring.port_suffix = ...`.
    """

    protocol: Mapping[str, Any]
    data: Mapping[str, Any]
    measured_at: str
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Group(Alike):
    """Runs that can be compared, with their numbers.

    Attributes:
        lines: By kind and metric, then by setting.
    """

    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Collected:
    """A sweep's results.

    Attributes:
        name: The sweep's name.
        tasks: How many tasks it has.
        runs: Those that are done.
        groups: Their numbers.
        notes: A line for every task that is not done, and for every run with records that failed.
    """

    name: str
    tasks: int
    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...]


def collected(folder: SweepFolder) -> Collected:
    """Read the summaries of a sweep's finished tasks.

    Raises:
        KeditError: A damaged task.json.
    """
    runs, notes = [], []
    for numbered in folder.tasks:
        state, record = numbered.state, numbered.record
        if state != "done":
            reason = f": {record['reason']}" if record.get("reason") and state != "running" else ""
            notes.append(f"{state}: {numbered.name}{reason}")
            continue
        try:
            summary = json.loads((numbered.folder / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            notes.append(f"damaged: {numbered.name}: {SUMMARY} cannot be read")
            continue
        runs.append(Run(numbered, summary))
        if summary["failed"]:
            notes.append(f"{len(summary['failed'])} of {summary['data']['records']} records failed: {numbered.name}")
    return Collected(folder.name, len(folder.tasks), tuple(runs), tuple(_groups(runs)), tuple(notes))


def csv_rows(result: Collected) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns, and a row per run, moment, kind of probe and metric; nothing is rounded or averaged."""
    axes = dict.fromkeys(axis for run in result.runs for axis in run.numbered.task.labels if axis != "config")
    rows = []
    for run in result.runs:
        summary, task = run.summary, run.numbered.task
        method, data, protocol = summary["method"], summary["data"], summary["protocol"]
        same = {
            "task": task.name, "index": run.numbered.index, "config": task.config, "method": method["method"],
            "editor": method.get("editor"), "data": data["name"], "data_fingerprint": data["fingerprint"],
            "records": data["records"], "failed_records": len(summary["failed"]), "measured": protocol["measured"],
            "protocol": json.dumps(protocol, sort_keys=True), "commit": summary["provenance"]["commit"],
            **{name: method[name] for name in ("model", "model_fingerprint", "dtype", "seed", "regime")},
            **{f"grid:{axis}": task.options.get(axis, task.labels.get(axis)) for axis in axes},
        }  # fmt: skip
        for measured_at, kinds in summary["results"].items():
            for kind, metrics in kinds.items():
                for metric, cell in metrics.items():
                    row = same | {"measured_at": measured_at, "kind": kind, "metric": metric}
                    row |= {name: cell.get(name) for name in ("before", "after", "change", "n_records", "n_probes")}
                    row["ci_low"], row["ci_high"] = cell.get("ci") or (None, None)
                    row["change_ci_low"], row["change_ci_high"] = cell.get("change_ci") or (None, None)
                    rows.append(row)
    return [*COLUMNS, *(f"grid:{axis}" for axis in axes)], rows


def alike(measured: Sequence[tuple[Mapping[str, Any], str]]) -> list[tuple[Alike, list[int]]]:
    """Which measurements can be compared: those of one protocol, one data set and one measuring point.

    Args:
        measured: Summary of a run and one of its measuring points.

    Returns:
        For each group what it has in common, and the places in `measured`; in the order of `measured`.
    """
    found: dict[tuple[str, ...], list[int]] = {}
    for place, (summary, measured_at) in enumerate(measured):
        protocol, data = summary["protocol"], summary["data"]
        key = (json.dumps(protocol, sort_keys=True), data["name"], data["fingerprint"], measured_at)
        found.setdefault(key, []).append(place)
    protocols = [_leaves(json.loads(key)) for key in dict.fromkeys(key[0] for key in found)]
    common = set.intersection(*(set(leaves.items()) for leaves in protocols)) if protocols else set()
    groups = []
    for (protocol, _, _, measured_at), places in found.items():
        own = json.loads(protocol)
        titled = ("name", "regime", "measured", "fast_dev_run")  # what a table's title says in any case
        differs = [f"{name} = {value}" for name, value in _leaves(own).items() if (name, value) not in common]
        differs = [text for text in differs if text.partition(" ")[0] not in titled]
        groups.append((Alike(own, measured[places[0]][0]["data"], measured_at, tuple(differs)), places))
    return groups


def _groups(runs: Sequence[Run]) -> Iterator[Group]:
    """One for each protocol, data set and moment, in the order of the tasks."""
    measured = [(run, measured_at) for run in runs for measured_at in run.summary["results"]]
    names = settings([run.numbered.task for run in runs])
    for common, places in alike([(run.summary, measured_at) for run, measured_at in measured]):
        members = [measured[place][0] for place in places]
        lines = tuple(_lines(members, common.measured_at, names))
        yield Group(**vars(common), lines=lines)


def _lines(runs: Sequence[Run], measured_at: str, names: Mapping[str, str]) -> Iterator[Line]:
    """What a report shows (`kedit.results.tables`), metric by metric."""
    cells: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for run in runs:
        for kind, metrics in run.summary["results"][measured_at].items():
            for metric in shown_metrics(run.method, kind, metrics):
                by_setting = cells.setdefault((kind, metric), {})
                by_setting.setdefault(names[run.numbered.name], []).append(metrics[metric])
    for (kind, metric), by_setting in cells.items():
        for setting, several in by_setting.items():
            yield _line(kind, metric, setting, several)


def _line(kind: str, metric: str, setting: str, cells: Sequence[Mapping[str, Any]]) -> Line:
    before, after = ([cell[side] for cell in cells if cell[side] is not None] for side in ("before", "after"))
    ci = cells[0].get("ci")
    return Line(
        kind=kind,
        metric=metric,
        setting=setting,
        before=statistics.fmean(before) if before else None,
        after=statistics.fmean(after) if after else None,
        ci=(ci[0], ci[1]) if ci is not None and len(cells) == 1 else None,
        spread=statistics.stdev(after) if len(after) > 1 else None,
        seeds=len(cells),
    )


def settings(tasks: Sequence[Task], seeds: bool = False) -> dict[str, str]:
    """Task -> its setting: the configuration, and the axes that vary, without the seeds.

    Where two settings would be called the same (configurations of one name in two folders), tasks stand by themselves.

    Args:
        tasks: The tasks.
        seeds: Let the seeds be part of the setting.
    """
    axes = list(dict.fromkeys(axis for task in tasks for axis in task.labels))
    varying = [axis for axis in axes if len({task.labels.get(axis) for task in tasks}) > 1 or axis == "config"]
    parts = [axis for axis in varying if seeds or not is_seed(axis)]
    names = {task.name: " ".join(task.labels[axis] for axis in parts if axis in task.labels) for task in tasks}
    distinct: dict[str, str] = {}
    for task in tasks:
        labels = {axis: label for axis, label in task.labels.items() if seeds or not is_seed(axis)}
        own = json.dumps([task.config, labels], sort_keys=True)
        if distinct.setdefault(names[task.name], own) != own:
            names[task.name] = task.name
    return names


def is_seed(axis: str) -> bool:
    """Whether an axis of the grid repeats a setting rather than making another one."""
    return axis.rpartition(".")[2] == "seed"


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)
    return leaves
