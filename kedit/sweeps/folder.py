"""The folder of a sweep: its list of tasks, and for each task a folder with results, log and its status.

sweep.json             the tasks; their numbers never change, what is added later comes at the end
tasks/NAME/            the folder of that run, as `kedit fit` writes it
tasks/NAME/log.txt     what it said, all attempts
tasks/NAME/task.json   its status: the mark by which it is skipped when it is done
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kedit.errors import KeditError, shown
from kedit.runtime.files import write_json
from kedit.runtime.lock import flock, held
from kedit.runtime.run_folder import RESULTS, finished
from kedit.sweeps.spec import Sweep, Task

PLAN = "sweep.json"
RECORD = "task.json"
LOG = "log.txt"

_FOLDER = re.compile(r"\w[\w.-]{0,199}")

State = Literal["done", "running", "failed", "interrupted", "not started"]


class Busy(KeditError):
    """Another process runs the task."""


@dataclass(frozen=True)
class Numbered:
    """A task of a folder.

    Attributes:
        index: Its number, from 0: the element of a Slurm array that runs it.
        task: What it runs.
        folder: Where its results are.
    """

    index: int
    task: Task
    folder: Path

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def words(self) -> list[str]:
        """What stands after `kedit fit`."""
        run = {"run.root": str(self.folder.parent), "run.name": self.name, "run.resume": "true"}
        return [*self.task.words(), *(f"--{name}={value}" for name, value in run.items())]

    @property
    def record(self) -> dict[str, Any]:
        """What `task.json` says; empty before the first attempt."""
        path = self.folder / RECORD
        found = _read(path) if path.exists() else {}
        if found and not isinstance(found.get("state"), str):
            raise KeditError(f"{path} is damaged; remove it to run the task again")
        return found

    @property
    def state(self) -> State:
        """What became of it. A task that was killed without notice is interrupted."""
        record = self.record
        if not record:
            return "not started"
        if record["state"] == "running":
            return "running" if held(self.folder / ".lock") else "interrupted"
        return "interrupted" if record["state"] == "done" and not finished(self.folder) else record["state"]

    def save(self, record: dict[str, Any]) -> None:
        """Write `task.json`, in one step."""
        write_json(self.folder / RECORD, record)

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Keep other processes off this task; yields the lock's file descriptor.

        A child that inherits it holds the lock too, should this process be killed. A file system without locks
        (ENOLCK, ENOSYS) has none here either.

        Raises:
            Busy: Another process has it.
            KeditError: The folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise KeditError(f"{self.folder} cannot be written: {error.strerror}") from None
        try:
            if not flock(descriptor):
                raise Busy(f"{self.name} is being run by another process")
            yield descriptor
        finally:
            os.close(descriptor)


class SweepFolder:
    """The folder of a sweep.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._plan: dict[str, Any] = {"name": path.name, "file": None, "fingerprint": None, "tasks": []}
        if (path / PLAN).exists():
            self._plan = _checked(path / PLAN)

    @property
    def name(self) -> str:
        """The sweep's name."""
        return str(self._plan["name"])

    @property
    def tasks(self) -> list[Numbered]:
        """The sweep's tasks, by number; those that are no longer in the sweep file are left out."""
        return [
            Numbered(index, _task(entry), self.path / "tasks" / entry["name"])
            for index, entry in enumerate(self._plan["tasks"])
            if entry["in_sweep"]
        ]

    def find(self, what: str) -> Numbered:
        """The task of a number or a name.

        Raises:
            KeditError: There is none.
        """
        for numbered in self.tasks:
            if what in (str(numbered.index), numbered.name):
                return numbered
        known = ranges([numbered.index for numbered in self.tasks])
        raise KeditError(
            f"there is no task {shown(what)} in {self.path}; there are {known}, and names (--dry-run lists them)"
        )

    def planned(self, sweep: Sweep, file: Path) -> SweepFolder:
        """This folder with a sweep file's tasks; nothing is written.

        Raises:
            KeditError: A task has results that were made with other settings.
        """
        known = {entry["name"]: entry for entry in self._plan["tasks"]}
        entries = {name: entry | {"in_sweep": False} for name, entry in known.items()}
        for task in sweep.tasks:
            old = known.get(task.name)
            if old is not None and old["settings"] != task.settings and self._begun(task.name):
                raise KeditError(
                    f"{self.path / 'tasks' / task.name} holds results of other settings: {task.config} or the "
                    f"sweep's options were changed since\nGive --out another folder, or remove that one"
                )
            entries[task.name] = asdict(task) | {"in_sweep": True}
        other = SweepFolder(self.path)
        other._plan = {
            "name": sweep.name,
            "file": str(file),
            "fingerprint": sweep.fingerprint,
            "tasks": list(entries.values()),
        }
        return other

    def write(self) -> None:
        """Write `sweep.json`.

        Raises:
            KeditError: The folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KeditError(f"{self.path} cannot be written: {error.strerror}") from None
        write_json(self.path / PLAN, self._plan)

    def _begun(self, name: str) -> bool:
        """Whether there are results of a task; one that failed before its first edit may be given other settings."""
        results = self.path / "tasks" / name / RESULTS
        return results.exists() and results.stat().st_size > 0


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in ascending order as Slurm writes them: `0,3,7-9`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def _task(entry: dict[str, Any]) -> Task:
    return Task(**{key: value for key, value in entry.items() if key != "in_sweep"})


def _checked(path: Path) -> dict[str, Any]:
    """A list of tasks. Their names become folders: one that leads elsewhere is refused."""
    plan = _read(path)
    try:
        entries = [(_task(entry), entry["in_sweep"]) for entry in plan["tasks"]]
        good = isinstance(plan["name"], str) and all(
            isinstance(task.name, str) and _FOLDER.fullmatch(task.name) and isinstance(yes, bool)
            for task, yes in entries
        )
    except (AttributeError, KeyError, TypeError):
        good = False
    if not good:
        raise KeditError(f"{path} is damaged or was not written by kedit; remove it to start again")
    return plan


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise KeditError(f"{path} is damaged or cannot be read; remove it to start again")
    return found
