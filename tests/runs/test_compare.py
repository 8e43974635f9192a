"""`kedit compare` over a real run: an adapter beside its editor, from the rows of one and the same run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kedit.cli import main
from kedit.sweeps.arms import of_folders
from kedit.sweeps.compare import compare
from kedit.sweeps.measures import measures_of
from tests.support.device import ACCELERATOR
from tests.support.small_runs import FEW_STEPS, city_facts, option_words


def test_a_method_beside_its_editor(
    tiny_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """REP and ROME alone, on the same edits: the numbers are the summary's, differences those of their means."""
    editor = {"layer": 1, "mom2_adjustment": "false"}
    model = tiny_folder("llama", n_layers=3, d_model=16, d_ff=40)
    editor |= {name.removeprefix("model."): value for name, value in FEW_STEPS.items()}
    options = {
        "lm.name": model,
        "model": "REP",
        "model.editor": "ROME",
        **{f"model.editor.{name}": value for name, value in editor.items()},
        "model.adapter.steps": 3,
        "model.adapter.corpus_tokens": 0,
        "data": "Records",
        "data.path": city_facts(tmp_path / "facts.jsonl", 6),
        "metrics.scoring.generate": "[]",
        "robustness.fluency": "false",
        "trainer.accelerator": ACCELERATOR,
        "run.root": tmp_path,
        "run.name": "rep",
    }
    main(["fit", *option_words(options)])
    capsys.readouterr()
    run = tmp_path / "rep"
    (table,) = compare(of_folders([run], seeds=False), measures_of("main,tokens"), "rep/editor", paired=True).tables
    results = json.loads((run / "summary.json").read_text())["results"]
    assert {arm.name for arm in table.arms} == {"rep", "rep/editor"}
    by_name = {arm.name: arm for arm in table.arms}
    kinds = {"efficacy": "rewrite", "generality": "paraphrase", "locality": "neighborhood"}
    for name, cell in by_name["rep"].cells.items():
        title, _, metric = name.partition("/")
        if name == "steps":
            continue
        after = [results[at][kinds.get(title, title)][metric]["after"] for at in ("edit", "editor")]
        assert cell.mean == pytest.approx(after[0], abs=1e-4)
        assert by_name["rep/editor"].cells[name].mean == pytest.approx(after[1], abs=1e-4)
        assert by_name["rep"].differences[name].mean == pytest.approx(np.subtract(*after), abs=2e-4)
    main(["compare", str(run), "--against", "rep/editor", "--paired", "--out", str(tmp_path / "out")])
    assert "Difference to rep/editor" in capsys.readouterr().out
    assert (tmp_path / "out" / "tradeoff.png").stat().st_size > 10_000
