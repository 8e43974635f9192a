"""SIGTERM, and SIGUSR1, Slurm's notice that time is nearly up, as the orderly end of a command."""

from __future__ import annotations

import signal
import threading
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(SystemExit):
    """A signal ended the command; the exit status is 128 + its number.

    Args:
        number: The signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(128 + number)
        self.number = number


class Stopper:
    """While it is entered, the first such signal raises `Stopped`; those after it change nothing.

    Slurm signals every process of a job step, and `kedit sweep` its run too, so one notice arrives more than once.

    Attributes:
        received: The first signal.
        gentle: Only note it: work is under way that must not be cut off, and asks `check` where it may end.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.gentle = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        self._before = {number: signal.getsignal(number) for number in STOPPING}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """Hear the signals, again where another handler took its place. Python lets only the main thread do so."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                signal.signal(number, self._hear)

    def hold(self) -> None:
        """From now on a signal waits for `check`."""
        self.gentle = True

    def release(self) -> None:
        """From now on a signal ends the command at once; one that has waited does so here.

        Raises:
            Stopped: One has.
        """
        self.gentle = False
        self.check()

    def check(self) -> None:
        """End here if a signal came.

        Raises:
            Stopped: One did.
        """
        if self.received is not None:
            raise Stopped(self.received)

    def _hear(self, number: int, _: object) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            if not self.gentle:
                self.check()
