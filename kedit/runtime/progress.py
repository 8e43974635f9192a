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

BAR = 20  # columns, so that what is done can be said in words on a terminal of 80

Report = Callable[[str, int, int], None]
"""Called with (what is being done, how much is done, of how much)."""


@contextmanager
def stages() -> Iterator[Report]:
    """A bar for each thing that is reported; they go away at the end. Lines in the log where there is no terminal.

    Both say how much time is left, by the pace since the first report.
    """
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(BAR),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (console.is_terminal and distributed.is_main()),
    ) as bar:
        tasks: dict[str, TaskID] = {}
        began: dict[str, tuple[float, int]] = {}
        last = time.monotonic()

        def report(what: str, done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            start = began.setdefault(what, (now, done))
            if not console.is_terminal and now - last >= EVERY:
                last = now
                log.info("%s: %d of %d%s", what, done, total, _left(now - start[0], done - start[1], total - done))
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


def _left(seconds: float, done: int, rest: int) -> str:
    """The time that the rest takes, in words; empty where nothing was done yet to tell the pace by."""
    if done <= 0 or rest <= 0:
        return ""
    left = seconds / done * rest
    return f", about {left:.0f} s left" if left < 120 else f", about {left / 60:.0f} minutes left"


@contextmanager
def stage(what: str) -> Iterator[Callable[[int, int], None]]:
    """One bar; yields `progress(done, total)`."""
    with stages() as report:
        yield partial(report, what)
