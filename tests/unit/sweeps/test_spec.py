"""Sweep files: what they expand to, and how bad ones are refused before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from kedit.sweeps.folder import SweepFolder, ranges
from kedit.sweeps.spec import read_sweep
from tests.support.paths import ROOT
from tests.support.sweep_cases import config, sweep_file, write


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
        "edit.seed": [0, 1],
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
        *("--edit.seed=0", "--data.init_args.limit=null", "--model.init_args.mom2_adjustment=false"),
    ]
    assert sweep.name == "sweep"
    assert len({task.name for task in sweep.tasks}) == 8


def test_values_have_short_names(file: Callable[..., Path]) -> None:
    values = ["meta-llama/Meta-Llama-3-8B", "5e-1", 0.25, True, None, [1, 2], "../x y"]
    sweep = read_sweep(file(configs="a.yaml", grid={"lm.name": values}))
    names = [re.sub("^a-|-[0-9a-f]{6}$", "", task.name) for task in sweep.tasks]
    assert names == ["Meta_Llama_3_8B", "name5e_1", "name0.25", "name_true", "name_null", "name_1_2", "x_y"]


def test_a_sweep_can_grow(file: Callable[..., Path]) -> None:
    small = read_sweep(file(configs=["b.yaml"], grid={"edit.seed": [1]}))
    large = read_sweep(file(grid={"edit.seed": [0, 1]}))
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
    first = read_sweep(file(grid={"edit.seed": [0]}))
    assert read_sweep(file(grid={"edit.seed": [0]}, exclude=[])).fingerprint == first.fingerprint
    common = read_sweep(file(grid={"edit.seed": [0]}, options={"data.init_args.limit": 1}))
    assert [task.name for task in common.tasks] == [task.name for task in first.tasks]
    assert common.fingerprint != first.fingerprint
    text = Path("a.yaml").read_text()
    Path("a.yaml").write_text("# a comment\n" + text)
    assert read_sweep(file(grid={"edit.seed": [0]})).fingerprint == first.fingerprint
    Path("a.yaml").write_text(text.replace("layer: 1", "layer: 2"))
    assert read_sweep(file(grid={"edit.seed": [0]})).fingerprint != first.fingerprint


def test_exclude(file: Callable[..., Path]) -> None:
    grid = {"edit.seed": [0, 1, 2], "dataset": {"x": {"data.init_args.limit": 1}, "y": {}}}
    exclude = [{"config": "a", "edit.seed": [0, 1]}, {"config": "b.yaml", "dataset": "y"}]
    left = [tuple(task.labels.values()) for task in read_sweep(file(grid=grid, exclude=exclude)).tasks]
    assert left == [("a", "seed2", "x"), ("a", "seed2", "y"), *(("b", f"seed{n}", "x") for n in range(3))]


def test_axes_of_one_configuration(file: Callable[..., Path]) -> None:
    """Only its tasks have them, after the common ones; the other's keep their names."""
    grid = {"edit.seed": [0, 1]}
    arms = {"arm": {"plain": {}, "fast": {"model.init_args.v_lr": 0.9}}}
    sweep = read_sweep(file(grid=grid, grid_of={"b": arms}, exclude=[{"arm": "fast", "edit.seed": 1}]))
    assert [tuple(task.labels.values()) for task in sweep.tasks] == [
        ("a", "seed0"), ("a", "seed1"), ("b", "seed0", "plain"), ("b", "seed0", "fast"), ("b", "seed1", "plain")
    ]  # fmt: skip
    assert sweep.tasks[3].options == {"edit.seed": 0, "model.init_args.v_lr": 0.9}
    alone = read_sweep(file(grid=grid))
    assert sweep.tasks[:2] == alone.tasks[:2]
    by_path = read_sweep(file(grid=grid, grid_of={"b.yaml": arms}))
    assert len(by_path.tasks) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"grid_of": ["a"]}, "grid_of: expects a mapping of configurations"),
        ({"grid_of": {"c": {}}}, "grid_of: c is none of the configurations above"),
        ({"grid_of": {"a": {"edit.seed": 1}}}, "grid_of: a: edit.seed: expects a list of values"),
        ({"grid_of": {"a": {"x": [1]}}, "options": {"x": 2}}, "options: x is in the grid too (grid_of: a: x)"),
        ({"gird": {}}, "gird: there is no such key; there are name, configs, "),
        ({"name": "a/b"}, "name: expects letters"),
        ({"configs": []}, "configs: expects a list"),
        ({"configs": ["c.yaml"]}, "configs: there is no file c.yaml; "),
        ({"configs": ["a.yaml", "./a.yaml"]}, "configs: ./a.yaml is listed twice"),
        ({"configs": ["broken.yaml"]}, "configs: broken.yaml: not valid YAML at line 2, column 1"),
        ({"grid": [1]}, "grid: expects a mapping"),
        ({"grid": {"edit.seed": 1}}, "grid: edit.seed: expects a list of values"),
        ({"grid": {"edit.seed": []}}, "grid: edit.seed: expects a list of values"),
        ({"grid": {"edit.seed": [1, 1]}}, "grid: edit.seed: seed1 is there twice"),
        ({"grid": {"--edit.seed": [1]}}, "grid: '--edit.seed' is no option"),
        ({"grid": {"x": {"y": 3}}}, "grid: x: y: expects a mapping of options"),
        ({"grid": {"run.name": ["x"]}}, "grid: run.name cannot be set, the sweep does that itself"),
        ({"options": {"ckpt_path": "x"}}, "options: ckpt_path cannot be set"),
        ({"options": ["x"]}, "options: expects a mapping"),
        ({"options": {"a.b": float("nan")}}, "options.a.b: nan is not a finite number"),
        ({"options": {"a.b": 1}, "grid": {"a.b": [2]}}, "options: a.b is in the grid too"),
        ({"exclude": [{"seed": 1}]}, "exclude: entry 1: seed is neither config nor in the grid"),
        ({"exclude": [{"config": "c"}]}, "exclude: entry 1 is about no task"),
        ({"exclude": [{"config": ["a", "b"]}]}, "exclude: no task is left"),
        ({"exclude": {"config": "a"}}, "exclude: expects a list of mappings"),
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
        ([str(tmp_path / "nothing.yaml")], "there is no file "),
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
    """Every file in slurm/sweeps expands, and `kedit fit` takes its options.

    Those of a configuration's tasks are read in one command, one value after another, as a command takes a while.
    """
    from kedit.cli.commands.fit import parsed

    monkeypatch.chdir(ROOT)
    files = sorted(Path("slurm/sweeps").glob("*.yaml"))
    assert files
    for path in files:
        words: dict[str, list[str]] = {}
        for numbered in SweepFolder(Path("nowhere")).planned(read_sweep(path), path).tasks:
            of_config = words.setdefault(numbered.task.config, [])
            of_config += [word for word in numbered.words if word not in of_config]
        for of_config in words.values():
            parsed(of_config)
    assert not Path("nowhere").exists()


def test_ranges() -> None:
    assert ranges([0]) == "0"
    assert ranges([9, 0, 3, 7, 8]) == "0,3,7-9"
    assert ranges([4, 5]) == "4-5"
    assert ranges([]) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"model.init_args.layr": [1]}}, r"rome-layr1-\w{6}: model.layr: there is no such option; did you m"),
        ({"options": {"data.init_args.limt": 1}}, r"rome-seed0-\w{6}: data.limt: there is no such option"),
        ({"options": {"metrics.measure": "never"}}, r"rome-seed0-\w{6}: metrics.measure: expects one of "),
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
