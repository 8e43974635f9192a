"""The arms of a comparison: the finished runs of a sweep or of folders that were named, and what each is called.

An arm is a setting (method, configuration, point of a grid). Its seeds are arms of their own, or are put together.
A run that also measured its editor alone has two: its own, and ARM/editor.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedit.ability.scores import figures_of
from kedit.errors import KeditError
from kedit.results.costs import costs_of
from kedit.results.rows import edits_of
from kedit.runtime.run_folder import RESULTS, RUN, SUMMARY, read_rows
from kedit.sweeps.collect import collected, is_seed, settings
from kedit.sweeps.folder import PLAN, SweepFolder
from kedit.sweeps.measures import Sample, samples

log = logging.getLogger(__name__)

EDITOR = "editor"
"""Measuring point of the editor alone; it is that of `edit`, as both are measured after each edit."""

OF_EDITOR = f"/{EDITOR}"
"""How the name of an arm ends that is what the editor alone would have done."""

_SEED = re.compile(r"[-_. ]?seed[-_]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Finished:
    """A run with results.

    Attributes:
        arm: The arm that it belongs to.
        seed: What its seed is called, e.g. `seed0`.
        folder: Where it lies.
        summary: Its `summary.json`.
    """

    arm: str
    seed: str
    folder: Path
    summary: dict[str, Any]


@dataclass(frozen=True)
class Runs:
    """What there is to compare.

    Attributes:
        name: The sweep's name, or that of the folders.
        runs: Those with results.
        planned: Every arm, also those that have no results yet.
        settings: What the arms are called where seeds are put together.
        notes: A line for everything that is missing.
    """

    name: str
    runs: tuple[Finished, ...]
    planned: tuple[str, ...]
    settings: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """One run's values at one measuring point.

    Attributes:
        arm: The arm.
        seed: What its seed is called.
        summary: The run's `summary.json`.
        sample: The values.
        folder: The run's.
    """

    arm: str
    seed: str
    summary: dict[str, Any]
    sample: Sample
    folder: Path

    @property
    def measured_at(self) -> str:
        """The measuring point that it is compared at."""
        return "edit" if self.sample.measured_at == EDITOR else self.sample.measured_at


def of_sweep(folder: SweepFolder, seeds: bool) -> Runs:
    """The finished tasks of a sweep.

    Args:
        folder: The sweep's folder, planned.
        seeds: Put the seeds of a setting together.

    Raises:
        KeditError: A damaged task.json.
    """
    result = collected(folder)
    tasks = [numbered.task for numbered in folder.tasks]
    names = settings(tasks, seeds=not seeds)
    runs = []
    for run in result.runs:
        task = run.numbered.task
        labels = [label for axis, label in task.labels.items() if is_seed(axis)]
        seed = " ".join(labels) or f"seed{run.summary['method']['seed']}"
        runs.append(Finished(names[task.name], seed, run.numbered.folder, dict(run.summary)))
    planned, of_settings = (tuple(dict.fromkeys(found.values())) for found in (names, settings(tasks)))
    return Runs(f"sweep {result.name}", tuple(runs), planned, of_settings, result.notes)


def of_folders(folders: Sequence[Path], seeds: bool) -> Runs:
    """Runs of `kedit fit` that were named one by one; an arm is called as its folder.

    Args:
        folders: The runs' folders.
        seeds: Put runs together whose names differ in `seedN` alone.

    Raises:
        KeditError: No run's folder, or a run without results.
    """
    several = {name for name, n in Counter(path.resolve().name for path in folders).items() if n > 1}
    runs = []
    for path in dict.fromkeys(folders):
        summary = _summary(path)
        name = str(path) if path.resolve().name in several else path.resolve().name
        name = _setting(name) if seeds else name
        runs.append(Finished(name, f"seed{summary['method']['seed']}", path, summary))
        _check_settings(runs)
    notes = [
        f"{len(run.summary['failed'])} of {run.summary['data']['records']} records failed: {run.folder}"
        for run in runs
        if run.summary["failed"]
    ]
    arms = tuple(dict.fromkeys(run.arm for run in runs))
    return Runs(f"{len(runs)} runs", tuple(runs), arms, tuple(dict.fromkeys(map(_setting, arms))), tuple(notes))


def measured(runs: Sequence[Finished], first: int | None = None) -> list[Measured]:
    """The values of every run at each of its measuring points.

    Args:
        runs: The runs.
        first: Only so many records of each count, the first that were edited; None: all.

    Raises:
        KeditError: A run without result rows, a damaged row, or an arm that has a seed twice.
    """
    found = []
    for run in runs:
        if not (run.folder / RESULTS).exists():
            raise KeditError(f"{run.folder} has no {RESULTS}: a comparison goes record by record, and needs its rows")
        points = samples(read_rows(run.folder / RESULTS), first)
        ability = _ability(run.folder)
        costs, ends = costs_of(run.folder), sorted(n for at in points if (n := edits_of(at)) is not None)
        for measured_at, sample in points.items():
            if measured_at != EDITOR:
                n = edits_of(measured_at)
                since = 0 if n is None else max((end for end in ends if end < n), default=0)
                sample.add_costs(costs, run.summary, since)
                sample.add_ability(ability)
            arm = run.arm + OF_EDITOR if measured_at == EDITOR else run.arm
            found.append(Measured(arm, run.seed, run.summary, sample, run.folder))
    taken: dict[tuple[str, str], Finished] = {}
    for run in runs:
        other = taken.setdefault((run.arm, run.seed), run)
        if other is not run:
            raise KeditError(f"{run.arm} has {run.seed} twice: {other.folder} and {run.folder}; leave one of them out")
    return found


def _ability(folder: Path) -> list[dict[str, Any]]:
    """What a run says of general ability; a damaged file is named and left out, as no other column needs it."""
    try:
        return figures_of(folder)
    except KeditError as error:
        log.warning("%s; left out", error)
        return []


def _setting(name: str) -> str:
    """A run's name without its seed."""
    return _SEED.sub("", name) or name


def _summary(path: Path) -> dict[str, Any]:
    """A finished run's summary."""
    if not path.is_dir():
        raise KeditError(f"{path}: there is no such sweep file, nor folder of a sweep or of a run")
    if (path / PLAN).exists():
        raise KeditError(f"{path} is the folder of a sweep; a comparison takes one sweep, or folders of runs")
    try:
        found = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not {"protocol", "method", "data", "results", "failed"} <= set(found):
            raise ValueError
    except FileNotFoundError:
        if (path / RUN).exists() or (path / RESULTS).exists():
            raise KeditError(f"{path} has no results yet: the run is not finished; --run.resume true goes on") from None
        raise KeditError(f"{path} is not the folder of a sweep or of a run: no {PLAN}, no {SUMMARY} in it") from None
    except (OSError, ValueError):
        raise KeditError(f"{path / SUMMARY} is damaged or cannot be read") from None
    return found


def _check_settings(runs: Sequence[Finished]) -> None:
    """The last run's settings are those of its arm's first, but for the seed and what the seed draws."""
    *others, run = runs
    for other in others:
        if other.arm != run.arm:
            continue
        for name in {*other.summary["method"], *run.summary["method"]} - {"seed", "contexts"}:
            values = [json.dumps(one.summary["method"].get(name), sort_keys=True) for one in (other, run)]
            if values[0] != values[1]:
                raise KeditError(f"seeds: {other.folder} and {run.folder} are not one arm: they differ in {name}")
