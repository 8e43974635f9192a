"""Slips in PAC's options: a line that names the option, and no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from tests.support.pac_runs import quick_run

words = pytest.fixture(quick_run)

TRAINED = ("--model.train.lr", "--model.train.passes")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train.lr": 0}, "model.train.lr: 0 is not above 0"),
        ({"train.rollback": 1.5}, "model.train.rollback: 1.5 is no share; give 0 to 1, 0 for never"),
        ({"train.rollback": 0.5, "train.best": "false"}, "model.train.rollback: 0.5 expects model.train.best: true"),
        ({"trace.nodes": 40}, "model.trace.nodes: 40 and 1 contrast nodes are more than the 40 of model.layers.0"),
        ({"trace.nodes": 50, "trace.coverage": 0.5}, "model.trace.nodes: 50 and 1 contrast nodes are more than"),
        (
            {"trace.nodes": 40, "trace.node_source": "random"},
            "model.trace.nodes: 40 and 1 contrast nodes are more than",
        ),
        ({"parity": "true"}, "model.parity: the released run replaces model.train; give one of the two, not both"),
        ({"parity": "true", "scope": "edit", "train": "null"}, "model.parity: the released run traces an edit set"),
        ({"contrast.theta": "instead", "train.shared_adam": "true"}, "model.contrast.theta: instead keeps T- apart"),
        ({"contrast.lr": 0.1, "train.shared_adam": "true"}, "model.contrast.lr: one Adam has one learning rate"),
        ({"locality.prompts": 0}, "model.locality.prompts: 0 is less than 1"),
        ({"contrast.weight": -1}, "model.contrast.weight: -1 is negative"),
        ({"trace.coverage": 1.5}, "model.trace.coverage: 1.5 is not above 0 and at most 1"),
        ({"train.objective": "both"}, "model.train.objective: expects one of alternate, joint, not 'both'"),
    ],
)
def test_slips(
    more: dict[str, Any], message: str, words: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = words()
    if more.pop("train", None):  # the options of `words` would be changed ones
        command = [word for i, word in enumerate(command) if not {word, command[i - 1]} & {*TRAINED}]
    with pytest.raises(SystemExit) as stop:
        main([*command, *(part for key, value in more.items() for part in (f"--model.{key}", str(value)))])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (base_labels,) = [line for line in error.splitlines() if line.startswith("kedit: error: ")]
    assert base_labels.removeprefix("kedit: error: ").startswith(message)
    assert len(error[error.index(base_labels) :].strip().splitlines()) <= 2
    assert not list(tmp_path.rglob("summary.json"))
