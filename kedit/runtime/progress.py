"""Bars for long work with a known amount, on a terminal; a line now and then where there is none."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kedit.runtime import distributed

log = logging.getLogger(__name__)

EVERY = 30.0
"""Without a terminal, seconds between two lines; the first comes after as many, so that short work says nothing."""

Report = Callable[[str, int, int], None]
"""Called with (what is being done, how much is done, of how much)."""


@contextmanager
def stages() -> Iterator[Report]:
    """A bar for each thing that is reported; they go away at the end. Lines in the log where there is no terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (console.is_terminal and distributed.is_main()),
    ) as bar:
        tasks: dict[str, TaskID] = {}

        last = time.monotonic()

        def report(what: str, done: int, total: int) -> None:
            nonlocal last
            if not console.is_terminal and time.monotonic() - last >= EVERY:
                last = time.monotonic()
                log.info("%s: %d of %d", what, done, total)
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


@contextmanager
def stage(what: str) -> Iterator[Callable[[int, int], None]]:
    """One bar; yields `progress(done, total)`."""
    with stages() as report:
        yield partial(report, what)
