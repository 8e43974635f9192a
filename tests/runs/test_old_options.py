"""A configuration, a command or a sweep of kedit 0.1 ends with one line that says what moved where, and status 2."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from kedit.cli import main

OLD = """\
model:
  class_path: REP
  init_args:
    adapter: {reach: 1.0, reaches: [1.0], reach_variants: 8, siblings: 16, rivals: 4}
    editor:
      class_path: ROME
      init_args:
        lm: {name: no/such/model}
        regime: single
        layer: 5
        seed: 0
data: Facts
"""
END = " (kedit 0.2: configs/reference shows every option)"


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a command that fails says, in one line."""
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(shlex.split(command))
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(END)
        return line.removeprefix("kedit: error: ").removesuffix(END)

    return run


def test_a_configuration(said: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(OLD)
    line = said("fit --config old.yaml --run.name x")
    assert line.startswith("old.yaml: model.adapter.reach is now model.adapter.edit_strength, ")
    assert line.endswith("model.editor.lm is now lm, model.editor.regime is now edit.regime, model.editor.seed is now "
                         "edit.seed")  # fmt: skip
    assert line.count(" is now ") == 8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--model.init_args.lm.name gpt2", "model.init_args.lm.name"),
        ("--model.lm.name=gpt2", "model.lm.name is now lm.name"),
        ("--model.editor.regime batch", "model.editor.regime is now edit.regime"),
        ("--model.seed -1", "model.seed is now edit.seed"),
        ("--model.keep.weight 0", "model.keep.weight is now model.locality.weight"),
        ("""--model '{"class_path": "PAC", "init_args": {"lanes": 1}}'""", "model.lanes is now edit.lanes"),
        ("""--config '{"model": {"init_args": {"seed": 1}}}'""", "config: model.seed is now edit.seed"),
    ],
)
def test_words(said: Callable[..., str], words: str, told: str) -> None:
    assert said(f"fit --data Facts --model ROME {words}").startswith(told.replace("init_args.", ""))


@pytest.mark.parametrize(
    ("sweep", "told"),
    [
        ("configs: [old.yaml]", "sweep.yaml: configs: old.yaml: model.adapter.reach is now "),
        ("configs: [new.yaml]\ngrid: {model.init_args.seed: [0, 1]}", "sweep.yaml: grid: model.seed is now edit.seed"),
        ("configs: [new.yaml]\noptions: {model.regime: batch}", "sweep.yaml: options: model.regime is now edit.regime"),
        (
            "configs: [new.yaml]\ngrid: {arm: {a: {model.trace.pick: all}}}",
            "sweep.yaml: grid: arm: a: model.trace.pick is now model.trace.node_source",
        ),
    ],
)
def test_a_sweep(said: Callable[..., str], tmp_path: Path, sweep: str, told: str) -> None:
    (tmp_path / "old.yaml").write_text(OLD)
    (tmp_path / "new.yaml").write_text("model: ROME\ndata: Facts\n")
    (tmp_path / "sweep.yaml").write_text(sweep + "\n")
    assert said("sweep sweep.yaml").startswith(told)


def test_nothing_was_made(said: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(OLD)
    said("fit --config old.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["old.yaml"]
