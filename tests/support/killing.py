"""Runs in forked processes that are killed with SIGKILL, and what must be the same afterwards.

A fork has everything imported, so that a run begins at once. Used by `test_kills` and `benchmarks/endurance/kills.py`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from kedit.cli import main
from kedit.delta.delta import Delta
from kedit.delta.serialization import pack, unpack
from kedit.runtime.journal import read_journal
from kedit.runtime.run_folder import CHECKPOINT
from tests.support.device import skip_without_fork

TICKS = os.sysconf("SC_CLK_TCK")


def start(words: list[str], log: Path, doom: Callable[[], None] = lambda: None) -> int:
    """Forks; the child calls `doom`, then runs the command. Returns its process id."""
    skip_without_fork()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 1)
        os.dup2(1, 2)
        torch.set_num_threads(1)
        doom()
        main(words)
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException as error:  # noqa: BLE001 (the child of a fork must not return)
        print(repr(error), file=sys.stderr)  # noqa: T201
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """Exit status of a child; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_after(pid: int, seconds: float) -> int:
    """Kills a child when it has had so much CPU time, if it has not ended; its exit status."""
    while _cpu_seconds(pid) < seconds:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return wait(pid)


def at_write(number: int, torn: bool) -> Callable[[], None]:
    """Makes the process kill itself at its `number`-th fsync or replacing of a file.

    Args:
        number: From 1.
        torn: Right before it, with the last bytes of what was appended missing; or right after it.
    """

    def doom() -> None:
        left = [number]
        sync, replace = os.fsync, os.replace

        def last() -> bool:
            left[0] -= 1
            return left[0] == 0

        def fsync(fd: int) -> None:
            end = last()
            if end and torn:
                size = os.fstat(fd).st_size
                os.truncate(f"/proc/self/fd/{fd}", max(size - 7, 0))
                os.kill(os.getpid(), signal.SIGKILL)
            sync(fd)
            if end:
                os.kill(os.getpid(), signal.SIGKILL)

        def replaced(source: Any, target: Any, **kwargs: Any) -> None:
            end = last()
            if end and torn:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target, **kwargs)
            if end:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync, os.replace = fsync, replaced

    return doom


def difference(one: Path, other: Path) -> str | None:
    """What is not the same in the folders of two finished runs; None where they are the same, bit for bit."""
    names = [{_name(folder, path) for path in folder.rglob("*") if path.is_file()} for folder in (one, other)]
    if names[0] != names[1]:
        return f"files: {sorted(map(str, names[0] ^ names[1]))}"
    for name in ("results.jsonl", "curve.csv", "curve.png", "robustness.csv", "texts.json", "importance.csv"):
        if (one / name).exists() and (one / name).read_bytes() != (other / name).read_bytes():
            return name
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    for key in summaries[0].keys() | summaries[1].keys():
        if key not in ("timing", "written", "provenance") and summaries[0].get(key) != summaries[1].get(key):
            return f"summary.json: {key}"
    for path in one.rglob("delta.safetensors"):
        if not same(load_file(path), load_file(other / path.relative_to(one))):
            return str(path.relative_to(one))
    return None if same(*map(checkpoint_of, (one, other))) else "the checkpoint or its journal"


def checkpoint_of(folder: Path) -> dict[str, Any]:
    """What a run's checkpoint and its journal hold: the method's state, and the edits joined.

    Joined, because a journal that was begun anew (PAC) may have been so at another edit: equal strings that are one
    object take fewer bytes than those that were read again.
    """
    state = torch.load(folder / CHECKPOINT, weights_only=True)["kedit"]
    journal = state.pop("journal")
    entries = read_journal((folder / CHECKPOINT).parent / journal["file"], journal["bytes"])
    return state | {
        "deltas": pack(Delta.concat([unpack(delta) for entry in entries for delta in entry["deltas"]])),
        "outcomes": [outcome for entry in entries for outcome in entry["outcomes"]],
        "states": [entry["state"] for entry in entries if entry["state"]],
    }


def same(one: Any, other: Any) -> bool:
    """Whether nested dicts, lists and tensors are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return one == other


def _name(folder: Path, path: Path) -> str:
    """A file of the run; all logs, of which every process has its own, and all journals have one name."""
    name = path.relative_to(folder)
    return "logs" if name.parts[0] == "logs" else "journal" if name.match("edits-*.bin") else str(name)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
