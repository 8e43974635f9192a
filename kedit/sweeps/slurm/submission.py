"""Submitting a sweep: which tasks, which jobs, and the record of it (`submission.json` in the sweep's folder)."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedit.errors import KeditError
from kedit.runtime.files import write_json, write_text
from kedit.sweeps.folder import Numbered, SweepFolder
from kedit.sweeps.slurm import queue
from kedit.sweeps.slurm.options import SlurmOptions
from kedit.sweeps.slurm.render import LOGS, SCRIPTS, array_script, collect_script, stats_script

RECORD = "submission.json"


@dataclass(frozen=True)
class Job:
    """A script to be submitted.

    Attributes:
        what: `stats`, `array` or `collect`.
        path: Where it is written.
        text: The script.
        after: Dependency on another job: its kind and which, e.g. `("afterok", "stats")`.
    """

    what: str
    path: Path
    text: str
    after: tuple[str, str] | None = None


def jobs_of(
    folder: SweepFolder, tasks: Sequence[Numbered], options: SlurmOptions, stats: Sequence[Sequence[str]]
) -> list[Job]:
    """The jobs that run tasks of a sweep, in the order in which they are submitted.

    Args:
        folder: The sweep.
        tasks: Which tasks.
        options: What an element gets.
        stats: What `kedit stats` computes first; empty for nothing.
    """
    name, scripts = folder.name, folder.path / SCRIPTS
    jobs = []
    if stats:
        jobs.append(Job("stats", scripts / "stats.sbatch", stats_script(name, folder.path, stats, options)))
    array = array_script(name, folder.path, [numbered.index for numbered in tasks], options)
    jobs.append(Job("array", scripts / "array.sbatch", array, ("afterok", "stats") if stats else None))
    if options.collect:
        script = collect_script(name, folder.path, options)
        jobs.append(Job("collect", scripts / "collect.sbatch", script, ("afterany", "array")))
    return jobs


def submit(
    folder: SweepFolder, tasks: Sequence[Numbered], options: SlurmOptions, jobs: Sequence[Job]
) -> dict[str, str]:
    """Write the scripts, submit them, and record each job as soon as Slurm has it.

    Returns:
        What -> the job's number.

    Raises:
        KeditError: The folder cannot be written, there is no sbatch, or it refuses.
    """
    folder.write()
    for sub in (SCRIPTS, LOGS):  # Slurm does not make the folder of a job's output
        (folder.path / sub).mkdir(exist_ok=True)
    for job in jobs:
        write_text(job.path, job.text)
    numbers: dict[str, str] = {}
    before = submissions(folder.path)
    for job in jobs:
        after = None if job.after is None else f"{job.after[0]}:{numbers[job.after[1]]}"
        try:
            numbers[job.what] = queue.submit(job.path, after)
        except KeditError as error:
            had = ", ".join(f"{what} {number}" for what, number in numbers.items())
            raise KeditError(f"{error}" + (f"\nSlurm has these already: {had}" if had else "")) from None
        record = {
            "submitted": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "jobs": numbers,
            "tasks": [numbered.index for numbered in tasks],
            "options": dataclasses.asdict(options),
        }
        write_json(folder.path / RECORD, {"submissions": [*before, record]})
    return numbers


def commands(jobs: Sequence[Job]) -> list[str]:
    """The commands that submit the jobs, with names for the numbers that only Slurm knows."""
    lines = []
    for job in jobs:
        after = None if job.after is None else f"{job.after[0]}:{job.after[1].upper()}"
        lines.append(shlex.join(queue.sbatch_words(job.path, after)))
    return lines


def submissions(folder: Path) -> list[dict[str, Any]]:
    """What was submitted, first to last.

    Raises:
        KeditError: The record is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))["submissions"]
    except (OSError, ValueError, KeyError, TypeError):
        raise KeditError(f"{path} is damaged or cannot be read; remove it to forget what was submitted") from None


def arrays(folder: Path) -> list[str]:
    """The arrays' numbers, first to last."""
    return [record["jobs"]["array"] for record in submissions(folder) if "array" in record["jobs"]]


def waiting(folder: Path) -> dict[int, tuple[str, str]]:
    """What the queue holds of a sweep: task -> array and state.

    Raises:
        KeditError: Something was submitted, and squeue does not answer.
    """
    jobs = arrays(folder)
    if not jobs:
        return {}
    found = queue.queued(jobs)
    if found is None:
        raise KeditError("squeue does not answer, so what is still in the queue cannot be told from what is not")
    return {element: (job, state) for (job, element), state in found.items()}


def progress(folder: SweepFolder) -> Iterator[tuple[Numbered, str, str]]:
    """Every task with its state, and what there is to say: from its own mark, the queue, and the accounts."""
    jobs = arrays(folder.path)
    found = queue.queued(jobs) if jobs else {}
    in_queue: Mapping[int, tuple[str, str]] = {element: (job, s) for (job, element), s in (found or {}).items()}
    ended = queue.ended(jobs)
    for numbered in folder.tasks:
        state, record = numbered.state, numbered.record
        said = str(record.get("reason") or "")
        if state == "done":
            yield numbered, state, f"{record['seconds']:.0f} s"
        elif numbered.index in in_queue:
            job, slurm = in_queue[numbered.index]
            waits = slurm in queue.PENDING
            yield numbered, "pending" if waits else "running", f"job {job}_{numbered.index}, {slurm.lower()}"
        else:
            how = _ended(ended, jobs, numbered.index)
            yield numbered, state, ", ".join(part for part in (said, how) if part)


def _ended(ended: Mapping[tuple[str, int], str], jobs: Sequence[str], element: int) -> str:
    """How Slurm ended the newest element of that number, where that was not well."""
    states = [(job, ended[job, element]) for job in jobs if (job, element) in ended]
    if not states or states[-1][1] in ("COMPLETED", "PENDING", "RUNNING"):
        return ""
    return f"job {states[-1][0]}_{element}, {states[-1][1].lower()}"
