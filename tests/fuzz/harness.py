"""One case: what it may end in, what it must not, and where a failure is kept.

A case may be refused (a `KeditError`, or exit status 2, with a short message), or end in what its target says is right.
Anything else has failed: another exception, a hang, a long message, a result that is silently another one.
"""

from __future__ import annotations

import io
import logging
import shutil
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Protocol

from kedit.errors import KeditError
from tests.support.paths import ROOT

REFUSED, FAILED = "refused", "FAILED"
LINES, CHARACTERS = 2, 600
"""The most that a message may have."""

OURS = (str(ROOT / "kedit"), str(ROOT / "callbacks"))


class Wrong(Exception):
    """A result that is not the right one, and nothing was said."""


class TimeUp(BaseException):
    """The case takes too long: it hangs."""


@dataclass(frozen=True)
class Case:
    """One changed input.

    Args:
        change: What was done to it.
        run: Gives it to kedit; its result is the outcome, told in a word.
    """

    change: str
    run: Callable[[Said], str]


class Target(Protocol):
    """What is fuzzed. Made once, with a folder for what all its cases share."""

    name: str
    seconds: float

    def case(self, chance: Random, folder: Path) -> Case:
        """Writes one changed input into a folder of its own."""
        ...


@dataclass
class Said:
    """What was said while a case ran.

    Attributes:
        out: Standard output and error.
        log: What kedit logged.
    """

    out: io.StringIO = field(default_factory=io.StringIO)
    log: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join([self.out.getvalue(), *self.log])


@dataclass
class Report:
    """Outcomes of a target's cases.

    Attributes:
        counts: How many cases had which outcome.
        kinds: The same for kinds of failure.
        failures: What failed, in full.
    """

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def fuzz(target: Target, numbers: range, seed: int, scratch: Path, kept: Path | None = None) -> Iterator[Report]:
    """Runs cases of a target.

    Args:
        target: What is fuzzed.
        numbers: Of the cases.
        seed: Of all of them.
        scratch: Where the cases are written.
        kept: Where the inputs of failures stay; None: nowhere.

    Yields:
        The report so far, the same object after every case.
    """
    report = Report(target.name)
    for number in numbers:
        folder = scratch / f"{target.name}-{number}"
        folder.mkdir(parents=True)
        case = target.case(Random(f"{seed} {target.name} {number}"), folder)
        outcome, kind, more = judged(case, target.seconds)
        report.counts[outcome] += 1
        if outcome == FAILED:
            report.kinds[kind] += 1
            text = f"{target.name} case {number}, seed {seed}: {case.change}\n{kind}\n{more}"
            report.failures.append(text)
            if kept is not None:
                keep(folder, kept / folder.name, text)
        shutil.rmtree(folder)
        yield report


def judged(case: Case, seconds: float) -> tuple[str, str, str]:
    """The outcome of a case and, where it has failed, the kind of failure and all about it."""
    said = Said()
    try:
        with listening(said), time_limit(seconds):
            outcome = case.run(said)
    except KeditError as error:
        return judged_message(str(error))
    except SystemExit as stop:
        message = said.out.getvalue().rpartition("kedit: error: ")[2].strip()
        if stop.code == 2 and "Traceback" not in said.text and "kedit: error: " in said.text:
            return judged_message(message)
        return FAILED, f"exit status {stop.code}", said.text[-2000:]
    except Wrong as error:
        return FAILED, f"silently other: {str(error).partition(':')[0]}", str(error)
    except TimeUp as error:
        return FAILED, f"hang at {place(error)}", traceback.format_exc()[-3000:]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is what is looked for)
        return FAILED, f"{type(error).__name__} at {place(error)}", traceback.format_exc()[-3000:]
    return outcome, "", ""


def judged_message(message: str) -> tuple[str, str, str]:
    """Refused, if in few words."""
    if not message.strip() or len(message.splitlines()) > LINES or len(message) > CHARACTERS:
        return FAILED, f"message of {len(message.splitlines())} lines, {len(message) // 300 * 300}+ characters", message
    return REFUSED, "", message


def place(error: BaseException) -> str:
    """File and line: the last of kedit's that an exception went through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name != "_time_up"]
    ours = [frame for frame in frames if frame.filename.startswith(OURS)]
    return " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (ours or frames)[-1:])


def keep(folder: Path, target: Path, text: str) -> None:
    """Copies the input of a failure, and what was wrong, where someone may look at it."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, symlinks=True, ignore_dangling_symlinks=True)
    (target / "failure.txt").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


@contextmanager
def listening(said: Said) -> Iterator[None]:
    """Inside, nothing is printed; what would be is in `said`."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    handler = _Kept(said.log)
    root.handlers[:] = [handler]  # and so the command adds none of its own
    root.setLevel(logging.INFO)
    try:
        with redirect_stdout(said.out), redirect_stderr(said.out), warnings.catch_warnings():
            yield
    finally:
        root.level, root.handlers[:] = before


class _Kept(logging.Handler):
    """Keeps messages in a list."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """One more."""
        self.lines.append(record.getMessage())


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Inside, a `TimeUp` is raised after so many seconds."""

    def _time_up(number: int, frame: FrameType | None) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, _time_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
