"""Sweep files, and `kedit sweep`: real runs one after another, skipped when done, gone on with when interrupted."""

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
import yaml

from kedit.cli import main
from kedit.errors import KeditError
from kedit.sweep import read_sweep
from kedit.sweepfolder import SweepFolder, ranges
from tests.sweep_cases import config, sweep_file, write

ROOT = Path(__file__).parent.parent


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a sweep file into the working directory, with two configurations beside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write(tmp_path / f"{name}.yaml", config("nothing"))

    def sweep(**content: Any) -> Path:
        return write(Path("sweep.yaml"), {"configs": ["a.yaml", "b.yaml"]} | content)

    return sweep


def test_expansion_is_in_the_files_order(file: Callable[..., Path]) -> None:
    grid = {
        "model.init_args.seed": [0, 1],
        "dataset": {"mine": {"data.init_args.limit": 3}, "all": {"data.init_args.limit": None}},
        "model.init_args.mom2_adjustment": [False],
    }
    sweep = read_sweep(
        file(grid=grid, options={"metrics.scoring.generate": [], "run_": 1, "model.init_args.lr": "5e-1"})
    )
    labels = [tuple(task.labels.values()) for task in sweep.tasks]
    assert labels[:3] == [
        ("a", "seed0", "mine", "mom2_adjustment-false"),
        ("a", "seed0", "all", "mom2_adjustment-false"),
        ("a", "seed1", "mine", "mom2_adjustment-false"),
    ]
    assert [label[0] for label in labels] == ["a"] * 4 + ["b"] * 4
    assert re.fullmatch(r"a-seed0-all-mom2_adjustment_false-[0-9a-f]{6}", sweep.tasks[1].name)
    assert sweep.tasks[1].words() == [
        *("--config", "a.yaml", "--metrics.scoring.generate=[]", "--run_=1", "--model.init_args.lr=5e-1"),
        *("--model.init_args.seed=0", "--data.init_args.limit=null", "--model.init_args.mom2_adjustment=false"),
    ]
    assert sweep.name == "sweep"
    assert len({task.name for task in sweep.tasks}) == 8


def test_values_have_short_names(file: Callable[..., Path]) -> None:
    values = ["meta-llama/Meta-Llama-3-8B", "5e-1", 0.25, True, None, [1, 2], "../x y"]
    sweep = read_sweep(file(configs="a.yaml", grid={"model.init_args.lm.name": values}))
    names = [re.sub("^a-|-[0-9a-f]{6}$", "", task.name) for task in sweep.tasks]
    assert names == ["Meta_Llama_3_8B", "name5e_1", "name0.25", "name_true", "name_null", "name_1_2", "x_y"]


def test_a_sweep_can_grow(file: Callable[..., Path]) -> None:
    small = read_sweep(file(configs=["b.yaml"], grid={"model.init_args.seed": [1]}))
    large = read_sweep(file(grid={"model.init_args.seed": [0, 1]}))
    assert {task.name for task in small.tasks} <= {task.name for task in large.tasks}
    assert small.fingerprint != large.fingerprint

    folder = SweepFolder(Path("out")).planned(small, Path("small.yaml"))
    folder.write()
    grown = folder.planned(large, Path("large.yaml"))
    assert grown.tasks[0].task == small.tasks[0]
    assert [numbered.index for numbered in grown.tasks] == [0, 1, 2, 3]
    grown.write()
    again = SweepFolder(Path("out")).planned(small, Path("small.yaml"))
    assert [(numbered.index, numbered.name) for numbered in again.tasks] == [(0, small.tasks[0].name)]
    again.write()
    assert SweepFolder(Path("out")).planned(large, Path("large.yaml")).tasks == grown.tasks


def test_the_fingerprint_is_of_what_decides_the_results(file: Callable[..., Path]) -> None:
    first = read_sweep(file(grid={"model.init_args.seed": [0]}))
    assert read_sweep(file(grid={"model.init_args.seed": [0]}, exclude=[])).fingerprint == first.fingerprint
    common = read_sweep(file(grid={"model.init_args.seed": [0]}, options={"data.init_args.limit": 1}))
    assert [task.name for task in common.tasks] == [task.name for task in first.tasks]
    assert common.fingerprint != first.fingerprint
    text = Path("a.yaml").read_text()
    Path("a.yaml").write_text("# a comment\n" + text)
    assert read_sweep(file(grid={"model.init_args.seed": [0]})).fingerprint == first.fingerprint
    Path("a.yaml").write_text(text.replace("layer: 1", "layer: 2"))
    assert read_sweep(file(grid={"model.init_args.seed": [0]})).fingerprint != first.fingerprint


def test_exclude(file: Callable[..., Path]) -> None:
    grid = {"model.init_args.seed": [0, 1, 2], "dataset": {"x": {"data.init_args.limit": 1}, "y": {}}}
    exclude = [{"config": "a", "model.init_args.seed": [0, 1]}, {"config": "b.yaml", "dataset": "y"}]
    left = [tuple(task.labels.values()) for task in read_sweep(file(grid=grid, exclude=exclude)).tasks]
    assert left == [("a", "seed2", "x"), ("a", "seed2", "y"), *(("b", f"seed{n}", "x") for n in range(3))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gird": {}}, "gird: there is no such key; there are name, configs, "),
        ({"name": "a/b"}, "name: wants letters"),
        ({"configs": []}, "configs: wants a list"),
        ({"configs": ["c.yaml"]}, "configs: c.yaml: no such file"),
        ({"configs": ["a.yaml", "./a.yaml"]}, "configs: ./a.yaml is listed twice"),
        ({"configs": ["broken.yaml"]}, "configs: broken.yaml: not valid YAML at line 2, column 1"),
        ({"grid": [1]}, "grid: wants a mapping"),
        ({"grid": {"model.seed": 1}}, "grid: model.seed: wants a list of values"),
        ({"grid": {"model.seed": []}}, "grid: model.seed: wants a list of values"),
        ({"grid": {"model.seed": [1, 1]}}, "grid: model.seed: seed1 is there twice"),
        ({"grid": {"--model.seed": [1]}}, "grid: '--model.seed' is no option"),
        ({"grid": {"x": {"y": 3}}}, "grid: x: y: wants a mapping of options"),
        ({"grid": {"run.name": ["x"]}}, "grid: run.name cannot be set, the sweep does that itself"),
        ({"options": {"ckpt_path": "x"}}, "options: ckpt_path cannot be set"),
        ({"options": ["x"]}, "options: wants a mapping"),
        ({"options": {"a.b": float("nan")}}, "options: a.b: nan cannot be written on a command line"),
        ({"options": {"a.b": 1}, "grid": {"a.b": [2]}}, "options: a.b is in the grid too"),
        ({"exclude": [{"seed": 1}]}, "exclude: entry 1: seed is neither config nor in the grid"),
        ({"exclude": [{"config": "c"}]}, "exclude: entry 1 is about no task"),
        ({"exclude": [{"config": ["a", "b"]}]}, "exclude: no task is left"),
        ({"exclude": {"config": "a"}}, "exclude: wants a list of mappings"),
    ],
)
def test_bad_sweep(
    file: Callable[..., Path], capsys: pytest.CaptureFixture[str], content: dict[str, Any], message: str
) -> None:
    Path("broken.yaml").write_text("a: [1\n")
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(file(**content)), "--dry-run"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"kedit: error: sweep.yaml: {message}")
    assert len(error.splitlines()) == 1


def test_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "latin.yaml").write_bytes(b"\xff\xfe\x00")
    for words, message in [
        ([], "Which sweep? "),
        ([str(tmp_path / "nothing.yaml")], "nothing.yaml: no such file"),
        ([str(tmp_path / "empty.yaml")], "empty.yaml: empty, or no mapping"),
        ([str(tmp_path / "list.yaml")], "list.yaml: empty, or no mapping"),
        ([str(tmp_path / "latin.yaml")], "latin.yaml: no UTF-8 text"),
        ([str(tmp_path)], "is not the folder of a sweep"),
    ]:
        for command in (["sweep"], ["collect"], ["slurm", "status"], ["slurm", "submit"]):
            with pytest.raises(SystemExit) as stop:
                main([*command, *words])
            assert stop.value.code == 2
            assert message in capsys.readouterr().err


def test_shipped_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file in slurm/sweeps expands, and `kedit fit` takes its options."""
    from kedit.cli.sweep import check_options

    monkeypatch.chdir(ROOT)
    files = sorted(Path("slurm/sweeps").glob("*.yaml"))
    assert files
    for path in files:
        folder = SweepFolder(Path("nowhere")).planned(read_sweep(path), path)
        check_options(folder.tasks)
    assert not Path("nowhere").exists()


def test_ranges() -> None:
    assert ranges([0]) == "0"
    assert ranges([9, 0, 3, 7, 8]) == "0,3,7-9"
    assert ranges([4, 5]) == "4-5"
    assert ranges([]) == ""


def test_runs_skips_and_goes_on(
    tmp_path: Path, tiny_folder: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    """Two runs; one fails at first, as its model is not there yet, and the sweep goes on."""
    caplog.set_level("INFO")
    out = tmp_path / "out"
    model = tiny_folder("llama", n_layers=3)
    late = tmp_path / "late"
    grid = {"model.init_args.lm.name": [str(late), model]}
    words = ["sweep", str(sweep_file(tmp_path, model, grid=grid)), "--out", str(out)]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 1
    said = [record.getMessage() for record in caplog.records if record.name == "kedit.cli.sweep"]
    assert said[0] == f"sweep tiny: 2 tasks, 0 of them done before; {out}"
    assert re.match(r"\[1/2\] rome-late-\w{6}: failed \(exit status 2\): .*late", said[1])
    assert re.match(r"\[2/2\] rome-\S+: done in \d+ s", said[2])
    assert said[3].startswith("1 of 2 tasks did not finish")

    first, second = SweepFolder(out).tasks
    assert (first.state, second.state) == ("failed", "done")
    assert first.record["status"] == 2
    assert first.record["tail"][-1].startswith("kedit: error: ")
    assert "--- attempt 1, " in (second.folder / "log.txt").read_text()
    assert "4 records" not in (second.folder / "log.txt").read_text()
    before = {path: path.stat().st_mtime_ns for path in second.folder.rglob("*") if path.is_file()}

    late.symlink_to(model)
    caplog.clear()
    main(words)
    said = [record.getMessage() for record in caplog.records if record.name == "kedit.cli.sweep"]
    assert re.match(r"\[1/2\] rome-late-\w{6}: done in", said[1])
    assert re.match(r"\[2/2\] rome-\S+: done before", said[2])
    assert {path: path.stat().st_mtime_ns for path in second.folder.rglob("*") if path.is_file()} == before
    assert first.record["attempts"] == 2
    main(["sweep", str(out)])  # the folder says what the sweep is

    (second.folder / "summary.json").unlink()
    assert second.state == "interrupted", "a mark without results"
    changed = sweep_file(tmp_path, model, grid=grid, options={"data.init_args.limit": 1})
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
        assert "there is no task 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"model.init_args.layr": [1]}}, r"rome-layr1-\w{6}: model.layr: there is no such option; did you m"),
        ({"options": {"data.init_args.limt": 1}}, r"rome-seed0-\w{6}: data.limt: there is no such option"),
        ({"options": {"metrics.measure": "never"}}, r"rome-seed0-\w{6}: metrics.measure: wants one of "),
        ({"grid": {"model": ["ROMEO"]}}, r"rome-ROMEO-\w{6}: model: there is no class 'ROMEO'"),
    ],
)
def test_unknown_options_are_named_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(sweep_file(tmp_path, "gpt2", **changes)), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.match(f"kedit: error: {message}", error), error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    words = ["sweep", str(sweep_file(tmp_path, "gpt2")), "--out", str(tmp_path / "file" / "out")]
    for more in ([], ["--task", "0"]):
        with pytest.raises(SystemExit) as stop:
            main([*words, *more])
        assert stop.value.code == 2
        assert re.match(r"kedit: error: \S+file/out cannot be written: Not a directory\n", capsys.readouterr().err)


def test_a_damaged_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text('{"tasks": [')
    with pytest.raises(SystemExit):
        main(["collect", str(tmp_path)])
    assert "sweep.json is damaged" in capsys.readouterr().err


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
    options = {"data.init_args.path": str(facts(tmp_path / "facts.jsonl", n)), "model.init_args.regime": "sequential"}
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
    options = {"data.init_args.path": str(facts(tmp_path / "facts.jsonl", 200)), "model.init_args.regime": "sequential"}
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
    assert yaml.safe_load(file.read_text())["configs"], "the sweep file is as it was"
