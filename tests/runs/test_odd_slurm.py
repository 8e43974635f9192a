"""Nothing that a user names is run by an sbatch script: refused, or quoted; the scripts are run with a real bash."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kedit.cli import main
from kedit.errors import KeditError
from kedit.sweeps.folder import PLAN, SweepFolder
from kedit.sweeps.slurm.options import SlurmOptions
from kedit.sweeps.slurm.render import array_script, collect_script, stats_script
from tests.support.sweep_cases import sweep_file

CONTROL = ["a\nb", "a\rb", "a\0b", "a\x1bb", "a\u2028b", "a\x85b"]
SHELL = [
    "my runs",
    "$(touch CAUGHT)",
    "`touch CAUGHT`",
    "a;touch CAUGHT",
    "a&touch CAUGHT&",
    "#x",
    "a|b",
    "$HOME",
    "*",
    "%j",
]
QUOTES = ["it's", 'a "b"', "a\\b", "-x"]
"""Slurm reads these in a way of its own."""


def named(option: str, value: str) -> dict[str, Any]:
    return {option: value}


def scripts(folder: Path, options: SlurmOptions | None = None, stats: str = "m", name: str = "demo") -> list[str]:
    options = options or SlurmOptions()
    return [
        array_script(name, folder, [0, 1], options),
        stats_script(name, folder, [[f"--lm.name={stats}"]], options),
        collect_script(name, folder, options),
    ]


def run(script: str, folder: Path) -> list[list[str]]:
    """Run a script where srun and kedit note their words; returns these."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    noted = folder / "noted"
    noted.write_bytes(b"")
    for name in ("srun", "kedit", "scontrol"):
        (commands / name).write_text('#!/bin/bash\nprintf "%s\\0" "$@" >> "$NOTED"; printf "\\n\\0" >> "$NOTED"\n')
        (commands / name).chmod(0o755)
    env = {"PATH": f"{commands}:{os.environ['PATH']}", "NOTED": str(noted), "SLURM_ARRAY_TASK_ID": "0", "HOME": "/home"}
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    subprocess.run(["bash"], input=script, text=True, check=True, cwd=folder, env=env, timeout=60)
    return [call.strip("\0").split("\0") for call in noted.read_text().split("\n\0") if call]


@pytest.mark.parametrize("name", SHELL)
def test_what_the_shell_would_run_is_quoted(name: str, tmp_path: Path) -> None:
    folder = Path("sweeps") / name
    calls = [call for script in scripts(folder, stats=name) for call in run(script, tmp_path)]
    words = [word for call in calls for word in call]
    assert words.count(str(folder)) == 3, "one sweep and two tables, each a word of its own"
    assert f"--lm.name={name}" in words
    assert not (tmp_path / "CAUGHT").exists()
    for script in scripts(folder, name=name):
        (line,) = [line for line in script.splitlines() if line.startswith("#SBATCH --job-name=")]
        assert (
            line.replace("#SBATCH --job-name=kedit-", "").replace("-", "").replace(".", "").replace("_", "a").isalnum()
        )


@pytest.mark.parametrize("name", CONTROL, ids=repr)
def test_control_characters_are_refused_everywhere(name: str) -> None:
    with pytest.raises(KeditError, match=r"^out: '.*' has a control character"):
        array_script("demo", Path("sweeps") / name, [0], SlurmOptions())
    with pytest.raises(KeditError, match=r"^out: "):
        collect_script("demo", Path("sweeps") / name, SlurmOptions())
    with pytest.raises(KeditError, match=r"^stats: "):
        stats_script("demo", Path("sweeps"), [["--lm.name", name]], SlurmOptions())
    with pytest.raises(KeditError, match=r"^name: "):
        array_script(name, Path("sweeps"), [0], SlurmOptions())
    for option in ("partition", "account", "qos", "mem", "time", "activate"):
        with pytest.raises(KeditError, match=f"^{option}: "):
            SlurmOptions(**named(option, name))
    with pytest.raises(KeditError, match=r"^extra: "):
        SlurmOptions(extra=[f"--constraint={name}"])


@pytest.mark.parametrize("name", QUOTES)
def test_what_slurm_reads_in_its_own_way_is_refused(name: str) -> None:
    with pytest.raises(KeditError, match=r"^out: .* cannot stand in an sbatch script"):
        array_script("demo", Path(name), [0], SlurmOptions())


@pytest.mark.parametrize("value", ["a b", "$(touch x)", "`x`", "a;b", "a'b", "", "#"])
def test_options_of_one_word(value: str) -> None:
    for option in ("partition", "account", "qos", "mem"):
        with pytest.raises(KeditError, match=f"^{option}: .* cannot stand in an sbatch script"):
            SlurmOptions(**named(option, value))


def test_an_activation_is_one_line_as_it_was_written(tmp_path: Path) -> None:
    for given in ("source venv/bin/activate", "module load x && source y\n"):
        script = array_script("demo", Path("s"), [0], SlurmOptions(activate=given))
        assert given.strip() in script.splitlines()
    assert run(array_script("demo", Path("s"), [0], SlurmOptions(activate="touch meant")), tmp_path)
    assert (tmp_path / "meant").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = sweep_file(tmp_path, "smollm2-135m")
    for out, message in (
        ("x\ntouch CAUGHT #", "out: 'x\\ntouch CAUGHT #' has a control character"),
        ("x\rb", "out: "),
        ("a'b", "out: "),
        ("a\0b", "out: "),
        ("y" * 300, "out: "),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["slurm", "submit", str(file), "--dry-run", "--out", out])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert f"kedit: error: {message}" in error
        assert len(error.strip().splitlines()) == 1
    for name in ("a\nb", "a b", "../x", "$(x)", "-x", 3):
        with pytest.raises(SystemExit) as stop:
            main(["slurm", "submit", str(sweep_file(tmp_path, "smollm2-135m", name=name)), "--dry-run"])
        assert stop.value.code == 2
        assert "name: expects letters" in capsys.readouterr().err
    assert not (tmp_path / "CAUGHT").exists()
    assert not (tmp_path / "runs").exists()


def damage(plan: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(plan.read_text())
    change(content)
    plan.write_text(json.dumps(content))


def test_a_sweep_folder_from_elsewhere(tmp_path: Path) -> None:
    """Names of tasks are folders below it, and its own name is one word of a script."""
    from kedit.cli.commands.sweep import open_sweep

    folder = open_sweep(str(sweep_file(tmp_path, "smollm2-135m")), str(tmp_path / "out"))
    folder.write()
    plan = tmp_path / "out" / PLAN
    sound = plan.read_text()
    damage(plan, lambda content: content.update(name="x --wrap=id"))
    assert "#SBATCH --job-name=kedit-x_--wrap_id\n" in array_script(
        SweepFolder(plan.parent).name, Path("s"), [0], SlurmOptions()
    )
    for change in (
        lambda content: content["tasks"][0].update(name="../../x"),
        lambda content: content["tasks"][0].update(name=".."),
        lambda content: content["tasks"][0].update(name="a\nb"),
        lambda content: content["tasks"][0].update(name=3),
        lambda content: content["tasks"][0].pop("settings"),
        lambda content: content["tasks"].append(3),
        lambda content: content.update(tasks=None),
    ):
        plan.write_text(sound)
        damage(plan, change)
        with pytest.raises(KeditError, match="is damaged or was not written by kedit"):
            SweepFolder(plan.parent)
    for text in ("[" * 100_000, "[]", "3", "", '"x"'):
        plan.write_text(text)
        with pytest.raises(KeditError, match="is damaged"):
            SweepFolder(plan.parent)


def test_collect_says_where_results_may_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kedit.cli.commands.sweep import open_sweep

    monkeypatch.chdir(tmp_path)
    file = sweep_file(tmp_path, "smollm2-135m")
    for command in (["collect"], ["slurm", "collect"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, str(file)])
        assert stop.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert (
            said[0] == f"kedit: error: there are no results in runs/sweeps/tiny, where kedit sweep {file} writes them"
        )
        assert said[1] == f"Where it was given --out DIR: kedit {' '.join(command)} DIR, or --runs DIR"
    open_sweep(str(file), "elsewhere").write()
    for words in (["elsewhere"], [str(file), "--runs", "elsewhere"]):
        main(["collect", *words])
        assert "not started" in capsys.readouterr().out


def test_options_of_a_file_are_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = tmp_path / "slurm.yaml"
    options.write_text(yaml.safe_dump({"partition": "a\n#SBATCH --wrap=id"}))
    with pytest.raises(SystemExit):
        main(["slurm", "submit", str(sweep_file(tmp_path, "m")), "--config", str(options), "--dry-run"])
    assert "partition: 'a\\n#SBATCH --wrap=id' cannot stand" in capsys.readouterr().err
