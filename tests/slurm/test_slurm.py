"""Sweeps and runs on a real Slurm of one node: preempted, killed, requeued by Slurm, and the same bits in the end.

.ci/slurm_up pytest -m slurm
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.cli import main
from kedit.runtime.journal import read_journal
from kedit.sweeps.folder import SweepFolder
from tests.runs.test_resume import assert_same_run, lines
from tests.runs.test_stopping import steps_logged
from tests.support.paths import ROOT
from tests.support.process_cases import case_words
from tests.support.sweep_cases import config, sweep_file, write

pytestmark = pytest.mark.slurm

N = 40
Rows = list[dict[str, Any]]


def said(*words: str) -> str:
    """What a command of Slurm's answers."""
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def until(what: Callable[[], object], why: str, seconds: float = 150) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"{why}: not after {seconds:.0f} s\n{said('scontrol', 'show', 'job')}"
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only a Slurm that is there for tests: nothing is ever sent to a cluster."""
    if shutil.which("sbatch") is None:
        pytest.skip("Slurm is not installed; as root: .ci/slurm_up pytest -m slurm")
    answer = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False, timeout=60)
    if not re.search(r"^ClusterName\s*= kedit-test$", answer.stdout, re.MULTILINE):
        pytest.skip("no Slurm for tests answers; .ci/slurm_up pytest -m slurm starts one")
    kedit = tmp_path / "bin" / "kedit"  # of this source tree
    kedit.parent.mkdir()
    kedit.write_text(f'#!/bin/bash\nexec {sys.executable} -m kedit "$@"\n')
    kedit.chmod(0o755)
    monkeypatch.setenv("PATH", f"{kedit.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the scripts say; other numbers of threads round differently
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def facts(tmp_path: Path) -> str:
    """`N` records."""
    path = tmp_path / "facts.jsonl"
    rows = [{"prompt": "{} is in", "subject": f"Rome {i}", "target_new": "Tokyo"} for i in range(N)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def preempt(job: str) -> None:
    """Slurm's notice, as before the end of the time."""
    said("scancel", "--signal=USR1", job)


def kill(job: str) -> None:
    """SIGKILL to all that srun started, outermost first. (Slurm itself sends SIGTERM ahead of it.)"""
    number = re.findall(r"JobId=(\d+)", said("scontrol", "show", "job", job))[0]
    rows = [row.split() for row in said("scontrol", "listpids", number).splitlines()]
    for process in sorted(int(row[0]) for row in rows if row[2] == "0"):
        os.kill(process, signal.SIGKILL)


def states(out: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """What `kedit slurm status` says of each task: its state, and the rest."""
    capsys.readouterr()
    main(["slurm", "status", str(out)])
    rows = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()[1:-1]]
    return [row[2:] for row in rows]


def test_a_disturbed_array_ends_as_a_local_sweep(
    tmp_path: Path,
    facts: str,
    tiny_folder: Callable[..., str],
    rows_of: Callable[[Path], list[Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Element 0 is killed, and submitted again; 2 is preempted, and comes back by itself; 1 is left alone."""
    out, local = tmp_path / "my runs, 10%", tmp_path / "local"
    args = {"regime": "sequential", "mom2_adjustment": True, "stats": {"tokens": 450}, "v_num_grad_steps": 6}
    run = config(tiny_folder("llama", n_layers=3, d_model=16, d_ff=40), **args)
    run["data"]["init_args"]["path"] = facts
    run["metrics"]["measure"] = "both"
    rome = write(tmp_path / "rome.yaml", run)
    grid = {"edit.seed": [0, 1, 2]}
    file = str(sweep_file(tmp_path, "", configs=[str(rome)], grid=grid, options={}))

    options = ["--stats", "true", "--gpus", "1", "--cpus", "1", "--mem", "1G", "--time", "20", "--partition", "gpu"]
    main(["slurm", "submit", file, "--out", str(out), *options])
    first = json.loads((out / "submission.json").read_text())["submissions"][0]["jobs"]
    array, tasks = first["array"], SweepFolder(out).tasks
    assert states(out, capsys) == [["pending", f"job {array}_{i}, pending"] for i in range(3)], "statistics first"

    for element, stop in ((0, kill), (2, preempt)):
        until(lambda element=element: lines(tasks[element].folder / "results.jsonl") >= 3, f"edits of {element}")
        assert states(out, capsys)[element] == ["running", f"job {array}_{element}, running"]
        stop(f"{array}_{element}")
    until(lambda: tasks[2].record["state"] == "interrupted", "element 2 stops")
    done = len(rows_of(tasks[2].folder))
    assert 3 <= done < N
    until(lambda: states(out, capsys)[2] == ["pending", f"job {array}_2, pending"], "element 2 is in the queue again")
    until(lambda: states(out, capsys)[0] == ["interrupted"], "element 0 is gone")
    assert lines(tasks[0].folder / "results.jsonl") < N

    main(["slurm", "resubmit", str(out), "--stats", "false"])
    second = json.loads((out / "submission.json").read_text())["submissions"][1]
    assert second["tasks"] == [0], "what is in the queue is not submitted twice"
    main(["sweep", file, "--out", str(local)])
    until(lambda: not said("squeue", "--noheader"), "all jobs end")

    assert [state for state, _ in states(out, capsys)] == ["done"] * 3
    assert [numbered.record["attempts"] for numbered in tasks] == [2, 1, 2]
    assert tasks[2].record["job"] == f"{array}_2"
    log = (tasks[2].folder / "log.txt").read_text()
    assert re.search(rf"^kedit: interrupted by SIGUSR1; {done} edit batches are done", log, re.MULTILINE)
    assert [log.count(f"--- attempt {n}") for n in (1, 2, 3)] == [1, 1, 0]
    output = (out / "logs" / f"{array}_2.out").read_text()
    assert "interrupted: stopped by SIGUSR1" in output
    assert "done in" in output, "one file for both attempts"
    assert "Traceback" not in log + output
    computed = "statistics of layer 1 over"
    assert computed in (out / "logs" / f"{first['stats']}-stats.out").read_text()
    assert computed not in log, "once, ahead of the array"

    for numbered, alone in zip(tasks, SweepFolder(local).tasks, strict=True):
        assert [row["batch"] for row in rows_of(numbered.folder) if row["measured_at"] == "edit"] == list(range(N))
        assert_same_run(alone.folder, numbered.folder, rows_of)
        assert_same_state(alone.folder, numbered.folder)
        assert steps_logged(alone.folder) == steps_logged(numbered.folder)
    for suffix, kind in (("md", "markdown"), ("csv", "csv")):
        main(["slurm", "collect", str(local), "--format", kind, "--out", str(local / f"table.{suffix}")])
        assert (local / f"table.{suffix}").read_text() == (out / f"table.{suffix}").read_text()
    assert not list(out.rglob("hpc_ckpt*"))


def assert_same_state(one: Path, other: Path) -> None:
    """Two runs' checkpoints, and the journals beside them, hold the same bits."""
    files = [run / "checkpoints" / "last.ckpt" for run in (one, other)]
    states = [torch.load(file, weights_only=True)["kedit"] for file in files]
    for file, state in zip(files, states, strict=True):
        journal = state.pop("journal")
        state["edits"] = read_journal(file.parent / journal["file"], journal["bytes"])
    tensors: list[list[torch.Tensor]] = [[], []]

    def plain(value: Any, found: list[torch.Tensor]) -> Any:
        if isinstance(value, torch.Tensor):
            found.append(value)
            return tuple(value.shape)
        if isinstance(value, dict):
            return {key: plain(item, found) for key, item in value.items()}
        return [plain(item, found) for item in value] if isinstance(value, list | tuple) else value

    assert plain(states[0], tensors[0]) == plain(states[1], tensors[1])
    assert tensors[0]
    assert all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def test_one_run_stopped_while_it_loads(tmp_path: Path, facts: str, tiny_folder: Callable[..., str]) -> None:
    run = config(tiny_folder("llama", n_layers=3, d_model=16, d_ff=40), regime="sequential")
    run["data"]["init_args"]["path"] = facts
    file = write(tmp_path / "rome.yaml", run)
    asked = ["--cpus-per-task=2", "--mem=1G", "--time=20", f"--chdir={tmp_path}"]
    words = [str(ROOT / "slurm" / "run.sbatch"), str(file), "--data.init_args.limit", "5"]
    job = said("sbatch", "--parsable", *asked, *words).strip()
    output, folder = tmp_path / f"kedit-{job}.out", tmp_path / "runs" / f"rome-{job}"
    until(lambda: output.exists() and "run folder: " in output.read_text(), "the options are read")
    assert "cpu=2" in said("scontrol", "show", "step", f"{job}.0")
    said("scancel", "--signal=USR1", job)
    until(lambda: not said("squeue", "--noheader", f"--jobs={job}"), "the job ends")
    text = output.read_text()
    assert text.count("Exited with exit code 138") == 1
    assert "kedit: interrupted by SIGUSR1" in text
    assert "Traceback" not in text
    assert lines(folder / "results.jsonl") == 5 + 5, "after each edit, and at the end"
    assert (folder / "summary.json").exists()


def test_a_run_of_two_tasks(tmp_path: Path, tiny_folder: Callable[..., str], rows_of: Callable[[Path], Rows]) -> None:
    """`srun` starts both processes; the run is that of one."""
    whole = case_words("EMMET-sequential", tiny_folder("llama", n_layers=4), tmp_path / "runs", 1)
    main(whole)
    file = whole[whole.index("--config") + 1]
    asked = ["--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1", "--mem=1G", f"--chdir={tmp_path}"]
    options = ["--trainer.accelerator", "cpu", "--data.batch_size", "3", "--metrics.scoring.batch_tokens", "60"]
    words = ["sbatch", "--wait", "--parsable", *asked, str(ROOT / "slurm" / "run.sbatch"), file, *options]
    waited = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    job = waited.stdout.strip()
    text = (tmp_path / f"kedit-{job}.out").read_text()
    assert waited.returncode == 0, text
    folder = tmp_path / "runs" / f"EMMET-sequential.json-{job}"
    assert json.loads((folder / "summary.json").read_text())["timing"]["processes"] == 2, text
    assert rows_of(folder) == rows_of(tmp_path / "runs" / "EMMET-sequential")
    assert "Traceback" not in text
    assert not list((tmp_path / "runs").glob(".decided*"))
