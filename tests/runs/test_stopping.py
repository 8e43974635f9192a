"""SIGUSR1 and SIGTERM: a clean end wherever they come, and a run that goes on as if nothing had been."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.callbacks import EditCheckpoint, EditMetrics, EditProgress, ResultsWriter
from kedit.cli import main
from kedit.methods import ROME
from kedit.methods.base.module import EditingModule
from kedit.runtime.signals import STOPPING, Stopped, Stopper
from kedit.sweeps.task import _outcome
from tests.runs.test_resume import assert_same_run
from tests.support.device import skip_without_fork
from tests.support.small_runs import QUICK_ROME, sequential_run
from tests.support.sweep_cases import RECORDS

pytestmark = pytest.mark.slow

N, STEPS = 4, 3


def send(number: int = signal.SIGUSR1) -> None:
    """A signal to this process."""
    os.kill(os.getpid(), number)


def stopped(words: list[str], status: int) -> None:
    """The command ends with that status."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == status


def steps_logged(folder: Path) -> list[dict[str, str]]:
    """The optimiser steps in the CSV logs of all attempts, each once."""
    rows: dict[str, dict[str, str]] = {}
    for file in sorted(folder.glob("logs/version_*/metrics.csv")):
        with file.open(newline="") as text:
            for row in csv.DictReader(text):
                assert rows.setdefault(row["step"], row) == row, "a step that is made again says the same"
    return list(rows.values())


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of all runs here, as a step of a Slurm job in which nobody may requeue anything."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "scontrol").write_text(f"#!/bin/bash\ntouch '{tmp_path}/requeued'\n")
    (bin / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}{os.pathsep}{os.environ['PATH']}")
    slurm = {"JOB_ID": "7", "JOB_NAME": "kedit", "NTASKS": "1", "NNODES": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in (slurm | {"NODEID": "0", "NTASKS_PER_NODE": "1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    own = {"model.stop_loss": 0, "metrics.measure": "both", "run.root": tmp_path / "runs", "run.resume": "true"}
    steps = {"model.v_num_grad_steps": STEPS + 1}  # the last one only measures
    return sequential_run(tiny_folder, RECORDS, QUICK_ROME | steps | own)


def test_the_first_signal_counts() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    with Stopper() as stopper:
        with pytest.raises(Stopped) as stop:
            send(signal.SIGTERM)
        send()  # of `kedit sweep`, say, beside Slurm's own: nothing happens, whatever is being cleaned up
        assert (stopper.received, stop.value.code) == (signal.SIGTERM, 143)
    with Stopper() as gentle:
        gentle.hold()
        send()
        send(signal.SIGTERM)
        with pytest.raises(Stopped) as stop:
            gentle.check()
        with pytest.raises(Stopped):
            gentle.release()
        assert stop.value.code == 138
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_before_the_run(words: list[str], tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While options are read, and while the model is loaded."""
    monkeypatch.setattr("kedit.cli.commands.fit.check_groups", lambda *_: send())
    stopped(words, 138)
    said = capfd.readouterr().err.splitlines()
    assert said[-1] == "kedit: interrupted by SIGUSR1; the run had not begun: the same command begins it"
    monkeypatch.undo()

    monkeypatch.setattr("kedit.methods.base.module.load_lm", lambda *_, **__: send(signal.SIGTERM))
    stopped([*words, "--run.name", "loading"], 143)
    said = capfd.readouterr().err.splitlines()
    folder = tmp_path / "runs" / "loading"
    assert said[-2] == f"kedit: interrupted by SIGTERM; 0 edit batches are done and kept in {folder}."
    assert not any("Traceback" in line for line in said)


def test_before_the_command_is_loaded(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr("kedit.cli.commands.ls.ls", lambda words: send())
    stopped(["ls"], 138)
    assert capfd.readouterr().err == "kedit: interrupted by SIGUSR1\n"


PLACES = {  # hook, at which call of it, signal, edit batches that were begun and are kept then
    "step": (EditingModule, "on_train_batch_end", 2 * STEPS + 1, signal.SIGUSR1, 3, 2),
    "edited": (EditProgress, "on_edit_end", 1, signal.SIGTERM, 2, 2),
    "measured": (EditMetrics, "on_edit_end", 2, signal.SIGUSR1, 3, 3),
    "checkpoint": (EditCheckpoint, "on_train_epoch_end", 1, signal.SIGUSR1, 2, 2),
    "last": (EditCheckpoint, "on_train_epoch_end", N - 1, signal.SIGTERM, N, N),
    "end": (ResultsWriter, "on_train_end", 0, signal.SIGUSR1, N, N),
}


@pytest.mark.parametrize("place", PLACES)
def test_in_the_run(
    place: str,
    words: list[str],
    tmp_path: Path,
    rows_of: Callable[[Path], list[Any]],
    capfd: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cls, hook, at, sent, begun, kept = PLACES[place]
    whole, broken = tmp_path / "runs" / "whole", tmp_path / "runs" / "broken"
    main([*words, "--run.name", "whole"])
    original, calls = getattr(cls, hook), iter(range(1000))
    edit, edits = ROME.edit, []

    def interrupted(self: Any, *args: Any) -> Any:
        if next(calls) == at:
            send(sent)
            send(signal.SIGTERM)
        return original(self, *args)

    def counted(self: ROME, batch: Any) -> Any:
        edits.append(batch.index)
        return edit(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(cls, hook, interrupted)
        patch.setattr(ROME, "edit", counted)
        capfd.readouterr()
        stopped([*words, "--run.name", "broken"], 128 + sent)
    assert edits == list(range(begun))
    said = capfd.readouterr().err.splitlines()
    assert said[-2] == f"kedit: interrupted by {sent.name}; {kept} edit batches are done and kept in {broken}."
    assert not (broken / "summary.json").exists()
    assert [row["batch"] for row in rows_of(broken)] == list(range(kept))
    main([*words, "--run.name", "broken"])
    assert_same_run(whole, broken, rows_of)
    assert steps_logged(broken) == steps_logged(whole)
    assert len(steps_logged(whole)) >= N * STEPS
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    assert not (tmp_path / "requeued").exists()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_what_a_sweep_makes_of_it(tmp_path: Path) -> None:
    """A run that got Slurm's notice, though `kedit sweep` did not."""
    assert _outcome(tmp_path, 138, None, []) == {"state": "interrupted", "reason": "stopped by SIGUSR1"}


def test_a_killed_run_keeps_the_log_of_its_edits(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a checkpoint vouches for is not logged again: it must be on the disk, and stay there."""
    start = EditingModule.on_train_epoch_start

    def killed(self: EditingModule) -> None:
        if self.trainer.current_epoch == 2:
            os._exit(9)
        start(self)

    monkeypatch.setattr(EditingModule, "on_train_epoch_start", killed)
    skip_without_fork()
    child = os.fork()
    if child == 0:
        main([*words, "--run.name", "killed"])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(steps_logged(tmp_path / "runs" / "killed")) == 2 * STEPS
    monkeypatch.undo()
    main([*words, "--run.name", "killed"])
    assert len(steps_logged(tmp_path / "runs" / "killed")) == N * STEPS
