"""Bars for long work with a known amount, on a terminal; nothing where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kedit import processes

Report = Callable[[str, int, int], None]
"""Called with (what is being done, how much is done, of how much)."""


@contextmanager
def stages() -> Iterator[Report]:
    """A bar for each thing that is reported; they go away at the end."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (console.is_terminal and processes.first()),
    ) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


@contextmanager
def stage(what: str) -> Iterator[Callable[[int, int], None]]:
    """One bar; yields `progress(done, total)`."""
    with stages() as report:
        yield partial(report, what)
