"""A wrapper around a wrapper, as the command makes it: its options, its run's name, its messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from tests.support.small_runs import city_facts, sequential_run

Rows = Callable[[Path], list[dict[str, Any]]]


def words(tiny_folder: Callable[..., str], tmp_path: Path, *more: str, **rome: Any) -> list[str]:
    """PRUNE around STEAM around ROME."""
    small = {"layer": 1, "mom2_adjustment": False, "v_num_grad_steps": 3, "contexts": {"lengths": [[3, 1]]}}
    steam = {"editor": {"class_path": "ROME", "init_args": small | rome}}
    method = {"class_path": "PRUNE", "init_args": {"editor": {"class_path": "STEAM", "init_args": steam}, "base": 2.0}}
    config = tmp_path / "wrapped.json"
    config.write_text(json.dumps({"model": method}))
    data = city_facts(tmp_path / "facts.jsonl", 3)
    own = sequential_run(tiny_folder, data, {"edit.regime": "single", "run.root": tmp_path / "runs"})
    return ["fit", "--config", str(config), *own[1:], *more]


def test_it_runs(tiny_folder: Callable[..., str], tmp_path: Path, rows_of: Rows) -> None:
    main(words(tiny_folder, tmp_path, "--model.halve", "false", "--edit.lanes", "2"))
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("rome-steam-prune-")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["method"]["method"], summary["method"]["editor"]) == ("PRUNE", "STEAM(ROME)")
    assert summary["method"]["base"] == 2.0
    assert set(summary["results"]) == {"edit", "editor"}
    rows = rows_of(run)
    alone, mine = ([r["probes"] for r in rows if r["measured_at"] == moment] for moment in ("editor", "edit"))
    assert [p[0]["before"] for p in alone] == [p[0]["before"] for p in mine]


@pytest.mark.parametrize(
    ("more", "rome", "message"),
    [
        ((), {"v_lr": -1.0}, "model.editor.editor.v_lr: -1.0 is less than 0"),
        ((), {"layer": 99}, "model.editor.editor.layer: there is no layer 99"),
        (("--model.base", "0.5"), {}, "model.base: 0.5 is no base of a logarithm"),
        (("--edit.regime", "batch"), {}, "edit.regime: ROME knows single, sequential"),
        (("--model.base", "x"), {}, "model.base: expects"),
        (("--model.editor", "PRUNE", "--model.editor.editor", "ROME"), {}, "model.editor: PRUNE around PRUNE"),
    ],
)
def test_messages_name_the_option_where_it_stands(
    more: tuple[str, ...],
    rome: dict[str, Any],
    message: str,
    tiny_folder: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words(tiny_folder, tmp_path, *more, **rome))
    assert stop.value.code == 2
    assert f"kedit: error: {message}" in capsys.readouterr().err
