"""Two runs of one name never share a folder, and a start that fails leaves none."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kedit.cli import main
from kedit.errors import KeditError
from kedit.runtime.claim import LOCK, Claim
from kedit.runtime.lock import held
from kedit.runtime.run_folder import RESULTS
from tests.support.killing import start, wait
from tests.support.small_runs import QUICK_ROME, city_facts, sequential_run

pytestmark = pytest.mark.slow

HOLD = """\
import pathlib, sys, time
from kedit.runtime.lock import hold
print(hold(pathlib.Path(sys.argv[1])), flush=True)
time.sleep(60)
"""


def full(folder: Path) -> Path:
    """Makes the folder of a run that has begun."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("")
    return folder


def test_names_are_never_shared(tmp_path: Path) -> None:
    root = tmp_path / "a" / "runs"
    claims = [Claim() for _ in range(4)]
    assert [claim.take(root, "one", False) for claim in claims] == [1, 2, 3, 4]
    assert all(held(root / name / LOCK) for name in ("one", "one-2", "one-3", "one-4"))
    for claim in claims:
        claim.release()
    assert not held(root / "one" / LOCK)
    assert Claim().take(root, "one", False) == 1  # it holds nothing: its run was killed before it wrote anything


def test_only_one_goes_on_with_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = full(tmp_path / "one")
    with Claim() as first, Claim() as second:
        assert first.take(tmp_path, "one", True) == 1
        with pytest.raises(KeditError, match=f"run.resume: {folder} is being run by another process"):
            second.take(tmp_path, "one", True)
        caplog.set_level(logging.INFO)
        assert second.take(tmp_path, "one", False) == 2
        assert f"{folder} is being run by another process, so this run gets another folder" in caplog.text
    with Claim() as third:
        full(tmp_path / "one-2")
        assert third.take(tmp_path, "one", True) == 2


def test_going_on_with_nothing_starts_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Claim() as claim:
        assert claim.take(tmp_path, "one", True) == 1
    assert f"run.resume: there is no run one in {tmp_path}, so this starts a new one" in caplog.text


def test_a_finished_run_is_not_locked(tmp_path: Path) -> None:
    (full(tmp_path / "one") / "summary.json").write_text("{}")
    with Claim() as first, Claim() as second:
        assert first.take(tmp_path, "one", True) == second.take(tmp_path, "one", True) == 1


def test_the_lock_vanishes_with_its_process(tmp_path: Path) -> None:
    folder = full(tmp_path / "one")
    command = [sys.executable, "-c", HOLD, str(folder / LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip().isdigit()
        with Claim() as claim, pytest.raises(KeditError, match="another process"):
            claim.take(tmp_path, "one", True)
        process.kill()
    with Claim() as claim:
        assert claim.take(tmp_path, "one", True) == 1


@pytest.mark.parametrize("results", [None, "", '{"case_id": "x"}\n'])
def test_what_a_failed_start_leaves(results: str | None, tmp_path: Path) -> None:
    root = tmp_path / "a" / "runs"
    folder = root / "one"

    def fails() -> None:
        with Claim() as claim:
            claim.take(root, "one", False)
            full(folder)
            (folder / "logs" / "version_0").mkdir(parents=True)
            if results is not None:
                (folder / RESULTS).write_text(results)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert folder.exists() == bool(results)
    assert root.parent.exists() == bool(results)


@pytest.mark.parametrize("extra", ["mine.txt", None])
def test_what_was_there_before_stays(extra: str | None, tmp_path: Path) -> None:
    """Also a file that somebody else puts into the folder, and a folder that was there."""
    folder = tmp_path / "one"
    if extra is None:
        full(folder)

    def fails() -> None:
        with Claim() as claim:
            claim.take(tmp_path, "one", extra is None)
            if extra is not None:
                (folder / extra).write_text("")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert (folder / (extra or "config.yaml")).exists()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_folder_can_have(name: str, tmp_path: Path) -> None:
    with Claim() as claim, pytest.raises(KeditError, match=r"run\.name: a folder '") as caught:
        claim.take(tmp_path, name, False)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    """A quick sequential run."""
    own = {"run.root": tmp_path / "runs", "run.name": "one"}
    return sequential_run(tiny_folder, city_facts(tmp_path / "facts.jsonl", 4), QUICK_ROME | own)


def _fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "slip",
    [
        ["--lm.name", "/nowhere/model"],
        ["--data.path", "nothing.jsonl"],
        ["--model.layer", "99"],
        ["--ckpt_path", "nothing.ckpt"],
        ["--trainer.accelerator", "tpu"],
        ["--metrics.eval_at", "[3,99]", "--data.batch_size", "2"],
    ],
    ids=lambda slip: slip[0],
)
def test_failed_starts_leave_nothing(
    slip: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _fails([*words, *slip], capsys)
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_two_commands_at_once(words: list[str], tmp_path: Path) -> None:
    """Started together: of two that go on, one runs; of new ones each has its folder, and all of its lines."""
    log = [tmp_path / f"log-{i}" for i in range(4)]
    both = [start([*words, "--run.resume", "true"], path) for path in log[:2]]
    status = [wait(pid) for pid in both]
    assert sorted(status) in ([0, 2], [0, 0]), [path.read_text() for path in log[:2]]  # the second may come too late
    new = [start([*words, "--run.name", "new"], path) for path in log[2:]]
    assert [wait(pid) for pid in new] == [0, 0], [path.read_text() for path in log[2:]]
    for name in ("one", "new", "new-2"):
        rows = [json.loads(line) for line in (tmp_path / "runs" / name / RESULTS).read_text().splitlines()]
        assert [(row["case_id"], row["measured_at"]) for row in rows] == [
            (f"fact-{i}", measured_at) for measured_at in ("edit", "end") for i in range(4)
        ]
    assert not (tmp_path / "runs" / "one-2").exists()


def test_a_run_that_is_being_run_and_then_killed(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `fast_dev_run` too: whoever goes on while it lasts is refused, and may go on afterwards."""
    words += ["--trainer.fast_dev_run", "true", "--run.resume", "true"]

    def slow() -> None:
        import kedit.callbacks.results as module

        module.write_json = lambda *_: time.sleep(60)

    log, folder = tmp_path / "log", tmp_path / "runs" / "one"
    pid = start(words, log, slow)
    end = time.monotonic() + 60
    while not held(folder / LOCK) and time.monotonic() < end:
        time.sleep(0.02)
    said = _fails(words, capsys)
    assert said.splitlines()[-1] == (
        f"kedit: error: run.resume: {folder} is being run by another process; wait, or give another run.name"
    )
    os.kill(pid, signal.SIGKILL)
    assert wait(pid) == -signal.SIGKILL
    main(words)
    assert (folder / "summary.json").exists()
