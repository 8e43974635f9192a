"""`kedit sweep`: real runs one after another, skipped when done, resumed when interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from kedit.errors import KeditError
from kedit.sweeps.folder import SweepFolder
from kedit.sweeps.spec import read_sweep
from tests.support.sweep_cases import sweep_file

pytestmark = pytest.mark.slow


def test_runs_skips_and_goes_on(
    tmp_path: Path, tiny_folder: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    """Two runs; one fails at first, as its model is not there yet, and the sweep goes on."""
    caplog.set_level("INFO")
    out = tmp_path / "out"
    model = tiny_folder("llama", n_layers=3)
    late = tmp_path / "late"
    grid = {"lm.name": [str(late), model]}
    words = ["sweep", str(sweep_file(tmp_path, model, grid=grid)), "--out", str(out)]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 1
    said = [record.getMessage() for record in caplog.records if record.name == "kedit.cli.commands.sweep"]
    assert said[0] == f"sweep tiny: 2 tasks, 0 of them done before; {out}"
    assert re.match(r"\[1/2\] rome-late-\w{6}: failed \(exit status 2\): .*late", said[1])
    assert re.match(r"\[2/2\] rome-\S+: done in \d+ s", said[2])
    assert said[3].startswith("1 of 2 tasks did not finish")

    first, second = SweepFolder(out).tasks
    assert (first.state, second.state) == ("failed", "done")
    assert first.record["status"] == 2
    assert first.record["tail"][-1].startswith("kedit: error: ")
    assert "--- attempt 1, " in (second.folder / "log.txt").read_text()
    assert "4 records in the file, 2 to edit: 2 left out (2 limit)" in (second.folder / "log.txt").read_text()
    before = {path: path.stat().st_mtime_ns for path in second.folder.rglob("*") if path.is_file()}

    limit = {"data.init_args.limit": 1}
    other = sweep_file(tmp_path, model, grid=grid, exclude=[{"lm.name": model}], options=limit)
    SweepFolder(out).planned(read_sweep(other), other)  # what failed before its first edit may be changed

    sweep_file(tmp_path, model, grid=grid)
    late.symlink_to(model)
    caplog.clear()
    main(words)
    said = [record.getMessage() for record in caplog.records if record.name == "kedit.cli.commands.sweep"]
    assert re.match(r"\[1/2\] rome-late-\w{6}: done in", said[1])
    assert re.match(r"\[2/2\] rome-\S+: done before", said[2])
    assert {path: path.stat().st_mtime_ns for path in second.folder.rglob("*") if path.is_file()} == before
    assert first.record["attempts"] == 2
    main(["sweep", str(out)])  # the folder says what the sweep is

    (second.folder / "summary.json").unlink()
    assert second.state == "interrupted", "a mark without results"
    changed = sweep_file(tmp_path, model, grid=grid, options=limit)
    with pytest.raises(KeditError, match="holds results of other settings"):
        SweepFolder(out).planned(read_sweep(changed), changed)


def test_one_task(tmp_path: Path, tiny_folder: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["sweep", str(sweep_file(tmp_path, tiny_folder("llama", n_layers=3))), "--out", str(out)]
    main([*words, "--dry-run"])
    listed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1 rome-seed1-\w{6} \(not started\)", listed[2])
    assert listed[3].strip().startswith("kedit fit --config ")
    assert listed[3].endswith("--run.resume=true")
    assert not out.exists()
    main([*words, "--only", listed[2].split()[1]])
    assert [numbered.state for numbered in SweepFolder(out).tasks] == ["not started", "done"]
    for task in ("--only", "--task"):
        with pytest.raises(SystemExit) as stop:
            main([*words, task, "7"])
        assert stop.value.code == 2
        assert "there is no task '7'" in capsys.readouterr().err


def facts(path: Path, n: int) -> Path:
    """So many records."""
    rows = [{"prompt": "{} is", "subject": f"Rome {i}", "target_new": "Tokyo"} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Until a file has content."""
    end = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_stopped_and_gone_on_with(
    tmp_path: Path,
    tiny_folder: Callable[..., str],
    rows_of: Callable[[Path], list[Any]],
    sent: signal.Signals,
    status: int,
) -> None:
    n = 60
    options = {"data.init_args.path": str(facts(tmp_path / "facts.jsonl", n)), "edit.regime": "sequential"}
    options |= {"metrics.measure": "edit"}
    file = sweep_file(tmp_path, tiny_folder("llama", n_layers=3), options=options)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "kedit", "sweep", str(file), "--out", str(out)]
    one = ["--task", "0"]
    folder = SweepFolder(out).planned(read_sweep(file), file).tasks[0].folder
    with subprocess.Popen(
        [*command, *(one if sent is signal.SIGUSR1 else [])],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    ) as process:
        wait_for(folder / "results.jsonl", process)
        numbered = SweepFolder(out).tasks[0]
        assert numbered.state == "running"
        other = subprocess.run([*command, *one], capture_output=True, text=True, check=False, timeout=120)
        assert other.returncode == 2
        assert "is being run by another process" in other.stderr
        process.send_signal(sent)
        _, error = process.communicate(timeout=60)
    assert process.returncode == status, error
    assert "Traceback" not in error
    assert f"interrupted: stopped by {sent.name}" in error
    assert error.splitlines()[-1] == "To go on: the same command again"
    assert numbered.state == "interrupted"
    done = len(rows_of(folder))
    assert done < n
    assert SweepFolder(out).tasks[1].state == "not started"
    if sent is signal.SIGTERM:
        main(["sweep", str(out), "--only", "0"])
        assert [row["batch"] for row in rows_of(folder)] == list(range(n))
        assert numbered.record["attempts"] == 2


def test_killed_without_notice(tmp_path: Path, tiny_folder: Callable[..., str]) -> None:
    """The run outlives `kedit sweep`; it holds the task until it is over, and then the task is not done."""
    options = {"data.init_args.path": str(facts(tmp_path / "facts.jsonl", 200)), "edit.regime": "sequential"}
    file = sweep_file(tmp_path, tiny_folder("llama", n_layers=3), options=options)
    out = tmp_path / "out"
    numbered = SweepFolder(out).planned(read_sweep(file), file).tasks[0]
    command = [sys.executable, "-m", "kedit", "sweep", str(file), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True) as process:
        wait_for(numbered.folder / "results.jsonl", process)
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    try:
        assert numbered.state == "running"
    finally:
        os.kill(int(child), signal.SIGKILL)
    end = time.monotonic() + 20
    while numbered.state == "running" and time.monotonic() < end:
        time.sleep(0.05)
    assert numbered.state == "interrupted"
