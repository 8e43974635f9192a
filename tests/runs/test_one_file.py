"""A closed form of one file (`tests/support/ridge.py`) runs in all regimes, by itself and wrapped, and is resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.cli import main
from kedit.keyvalue.keys import mean_keys
from kedit.keyvalue.past_keys import PastKeys
from kedit.methods import REP
from tests.runs.test_resume import assert_same_run
from tests.support.paths import ROOT
from tests.support.ridge import Ridge
from tests.support.small_runs import FEW_STEPS, city_facts, configured, sequential_run
from tests.support.tiny_models import tiny_lm
from tests.unit.methods.locate_then_edit.test_multi_layer import REQUESTS, bits, dense, options, run

Rows = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a sequential run of three edit batches."""
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    method = {"model": "tests.support.ridge.Ridge", "model.layers": "[0,1]", **FEW_STEPS, "data.batch_size": 2}
    return [*sequential_run(tiny_folder, city_facts(tmp_path / "facts.jsonl", 6), method), "--run.root", str(tmp_path)]


def test_it_is_one_short_file() -> None:
    assert len((ROOT / "tests" / "support" / "ridge.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("regime", ["single", "batch", "sequential"])
def test_every_regime(regime: str, words: list[str], tmp_path: Path, rows_of: Rows) -> None:
    main([*words, "--edit.regime", regime, "--run.name", regime])
    rows = [row for row in rows_of(tmp_path / regime) if row["measured_at"] == "edit"]
    assert [row["status"] for row in rows] == ["edited"] * 6
    assert all(0 < strength <= 1 for row in rows for strength in row["edit"]["strength"])
    about = json.loads((tmp_path / regime / "summary.json").read_text())["method"]
    assert (about["method"], about["ridge"], about["layers"]) == ("Ridge", 1.0, [0, 1])
    assert about["v_weight_decay"] == 0.5, "what is left null is published"
    assert not list((tmp_path / "cache").rglob("*down_proj*")), "a covariance that it does not need"


def test_a_resumed_run_has_the_past_keys(
    words: list[str], rows_of: Rows, whole_and_broken: Callable[[list[str], str], tuple[Path, Path]]
) -> None:
    assert_same_run(*whole_and_broken(words[: words.index("--run.root")] + root(words), "summary.json"), rows_of)


def root(words: list[str]) -> list[str]:
    """Where `whole_and_broken` looks for its runs."""
    return ["--run.root", str(Path(words[words.index("--run.root") + 1]) / "runs")]


def ridge(**changed: Any) -> Ridge:
    return configured(Ridge, **(options(layers=[1], regime="sequential") | changed))


def past(module: Ridge) -> PastKeys:
    assert module.past is not None
    return module.past


def test_the_keys_that_were_solved_with_are_remembered() -> None:
    """Those of the model before each batch, of the records that were edited, in the order of the edits."""
    lm = tiny_lm("llama", n_layers=4, d_model=16, d_ff=40)
    module = ridge()
    first, second = run(module, lm, REQUESTS[:4], batch_size=2)
    fresh = tiny_lm("llama", n_layers=4, d_model=16, d_ff=40)
    keys = mean_keys(fresh, REQUESTS[:2], module.contexts, [0.5, 0.25, 0.25], 1)
    assert torch.equal(first.keys[1], keys)
    assert torch.equal(past(module).of(1, keys), torch.cat([first.keys[1], second.keys[1]]).float().double())
    without = ridge()
    without.after_commit = lambda batch: None  # type: ignore[method-assign]
    alone = run(without, tiny_lm("llama", n_layers=4, d_model=16, d_ff=40), REQUESTS[:4], batch_size=2)
    assert torch.equal(dense(alone[0].deltas[0]), dense(first.deltas[0]))
    moved = [float((dense(batch.deltas[0]).view(16, 40).double() @ keys.T).norm()) for batch in (second, alone[1])]
    assert moved[0] < moved[1], "the second batch moves the values of the first one's keys less when it knows them"


@pytest.mark.parametrize("regime", ["single", "batch"])
def test_nothing_is_remembered_where_edits_do_not_accumulate(regime: Any) -> None:
    lm = tiny_lm("llama", n_layers=4, d_model=16, d_ff=40)
    before, module = bits(lm), ridge(regime=regime)
    batches = run(module, lm, batch_size=2)
    assert all(not batch.keys for batch in batches)
    assert len(past(module).of(1, torch.zeros(1, 40))) == 0
    assert all(torch.equal(before[name], value) for name, value in lm.model.state_dict().items())


def test_a_wrapper_passes_the_hooks_on() -> None:
    module = ridge()
    run(REP(module, mode="closed_form"), tiny_lm("llama", n_layers=4, d_model=16, d_ff=40), REQUESTS[:2], batch_size=1)
    assert len(past(module).of(1, torch.zeros(1, 40))) == 2
