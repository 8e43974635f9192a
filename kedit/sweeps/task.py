"""One task of a sweep as a process of its own: logged, recorded, stopped cleanly."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from kedit.errors import KeditError
from kedit.runtime.run_folder import finished
from kedit.sweeps.folder import LOG, Numbered

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""What stops a task after the optimiser step under way: Ctrl-C, the cluster, a closed terminal, and Slurm's notice
that time is up (SIGUSR1, see kedit/slurm/templates)."""

TAIL = 5  # last lines of a failed task's log that are recorded


def run_task(numbered: Numbered) -> dict[str, Any]:
    """Run a task, or go on with it, and record its status.

    Args:
        numbered: The task. Its log is appended to.

    Returns:
        What `task.json` says: `state` (done, failed or interrupted), `status` (its exit status), `signal` (of those
        that stop a task, the one that this process was sent), `seconds`, `reason` and the `tail` of its log.

    Raises:
        Busy: Another process runs it.
        KeditError: Its folder cannot be written.
    """
    command = [sys.executable, "-m", "kedit", "fit", *numbered.words]
    with numbered.lock() as lock, _open(numbered.folder / LOG) as log, _Stopper() as stopper:
        record: dict[str, Any] = {
            "state": "running",
            "attempts": numbered.record.get("attempts", 0) + 1,
            "started": _now(),
            "host": platform.node(),
            "job": _job(),
            "settings": numbered.task.settings,
            "command": shlex.join(["kedit", "fit", *numbered.words]),
        }
        numbered.save(record)
        _write(log, f"--- attempt {record['attempts']}, {record['started']}, {record['host']}: {record['command']}\n")
        begin, start = log.tell(), time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"COLUMNS": os.environ.get("COLUMNS", "120")},
            start_new_session=True,  # a terminal's signals reach it through this process alone; Slurm's reach both
            pass_fds=(lock,),
        )
        status = stopper.wait(process)
        record |= {"seconds": round(time.monotonic() - start, 1), "ended": _now(), "status": status}
        record |= {"signal": stopper.received, "tail": _tail(numbered.folder / LOG, begin)}
        record |= _outcome(numbered.folder, status, stopper.received, record["tail"])
        numbered.save(record)
    return record


class _Stopper:
    """While it is entered, signals that stop a task do so: the first gently, the next at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stopper:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
            self._before = {number: signal.signal(number, self._stop) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """The exit status of a process, 128 + n where signal n ended it."""
        self._process = process
        if self.received is not None:
            process.terminate()
        status = process.wait()
        return 128 - status if status < 0 else status

    def _stop(self, number: int, _: object) -> None:
        again, self.received = self.received is not None, number
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL if again and number == signal.SIGINT else signal.SIGTERM)


def _outcome(folder: Path, status: int, stopped: int | None, tail: list[str]) -> dict[str, Any]:
    if status == 0 and finished(folder):
        return {"state": "done", "reason": None}
    if stopped is not None or status in (130, 138, 143):
        return {"state": "interrupted", "reason": f"stopped by {signal.Signals(stopped or status - 128).name}"}
    if status == 0:
        return {"state": "failed", "reason": "it ended without a summary.json"}
    told = [line.partition("kedit: error: ")[2] for line in tail if line.startswith("kedit: error: ")]
    reason = (told or tail or ["nothing in its log"])[-1]
    if status > 128 and not told:
        names = {number.value: number.name for number in signal.Signals}
        reason = f"killed by {names.get(status - 128, f'signal {status - 128}')}" + (
            ", perhaps for want of memory" if status == 128 + signal.SIGKILL else ""
        )
    return {"state": "failed", "reason": reason}


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("ab")
    except OSError as error:
        raise KeditError(f"{path} cannot be written: {error.strerror}") from None


def _write(log: IO[bytes], text: str) -> None:
    try:
        log.write(text.encode())
        log.flush()
    except OSError as error:
        raise KeditError(f"{log.name} cannot be written: {error.strerror}") from None


def _tail(path: Path, begin: int) -> list[str]:
    """The last lines that were written after position `begin`."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(begin, file.tell() - 8000))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.strip()[:400] for line in lines if line.strip()][-TAIL:]


def _job() -> str | None:
    """The Slurm job that this is part of, as `squeue` calls it."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
