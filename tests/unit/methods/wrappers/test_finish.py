"""The hook on the sum of all deltas: once, at the end, never on what it has changed; and how the end is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.callbacks import EditCheckpoint
from kedit.cli import main
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.serialization import load_delta
from kedit.methods import MEMIT
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.runtime.run_folder import CHECKPOINT
from tests.support.halving import Halving
from tests.support.ridge import Ridge
from tests.support.small_runs import city_facts, configured, sequential_run
from tests.support.tiny_models import tiny_lm
from tests.unit.methods.locate_then_edit.test_multi_layer import bits, dense, options, run

Rows = Callable[[Path], list[dict[str, Any]]]


def fresh() -> LM:
    return tiny_lm("llama", n_layers=4, d_model=16, d_ff=40)


def changed(lm: LM, before: dict[str, torch.Tensor]) -> torch.Tensor:
    """What was added to the weights of layers 1 and 2, in a row."""
    paths = [lm.arch.path("mlp_out", layer) for layer in (1, 2)]
    modules = [lm.arch.module(lm.model, "mlp_out", layer) for layer in (1, 2)]
    pairs = zip(modules, paths, strict=True)
    return torch.cat([(weight(module) - before[f"{path}.weight"]).flatten() for module, path in pairs])


def test_a_sequential_run_ends_with_what_takes_the_place_of_the_sum() -> None:
    lm, plain = fresh(), configured(MEMIT, **options(regime="sequential"))
    before = bits(lm)
    run(plain, fresh(), batch_size=2)
    module = Halving(configured(MEMIT, **options(regime="sequential")))
    batches = run(module, lm, batch_size=2)
    total = Delta.concat(plain.deltas)
    assert torch.equal(dense(Delta.concat([batch.deltas[0] for batch in batches if batch.deltas[0]])), dense(total))
    (asked,) = module.totals
    assert torch.equal(dense(asked), dense(total))
    (left,) = module.deltas
    torch.testing.assert_close(dense(left), dense(total) / 2)
    torch.testing.assert_close(changed(lm, before), dense(total) / 2, atol=1e-6, rtol=1e-5)
    assert module.finished
    assert not plain.finished
    assert len(plain.deltas) == 3


@pytest.mark.parametrize("regime", ["single", "batch"])
def test_where_edits_do_not_accumulate_every_delta_is_the_whole(regime: Any) -> None:
    lm = fresh()
    before = bits(lm)
    plain = run(configured(MEMIT, **options(regime=regime)), fresh(), batch_size=3)
    module = Halving(configured(MEMIT, **options(regime=regime)))
    halved = run(module, lm, batch_size=3)
    n = 0
    for one, other in zip(plain, halved, strict=True):
        for whole, half in zip(one.deltas, other.deltas, strict=True):
            torch.testing.assert_close(dense(half), dense(whole) / 2)
            n += 1
    assert len(module.totals) == n == (5 if regime == "single" else 2)
    assert all(torch.equal(before[name], value) for name, value in lm.model.state_dict().items())


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_resumed_run_never_changes_what_was_changed(done: int, tmp_path: Path) -> None:
    """Also one that had come to its end, and was finished, before."""
    whole, second = fresh(), fresh()
    run(Halving(configured(MEMIT, **options(regime="sequential"))), whole, batch_size=2)
    kept = {"default_root_dir": str(tmp_path), "callbacks": [EditCheckpoint()], "max_epochs": done}
    first = Halving(configured(MEMIT, **options(regime="sequential")))
    run(first, fresh(), batch_size=2, **kept)
    assert first.finished, "the end of a shorter run is an end"
    module = Halving(configured(MEMIT, **options(regime="sequential")))
    run(module, second, batch_size=2, ckpt_path=str(tmp_path / CHECKPOINT))
    assert len(module.totals) == 1
    assert sum(f.rank for f in module.totals[0].of_kind(Factors).values()) == 2 * 5, "all five edits, as they were made"
    assert all(torch.equal(value, bits(second)[name]) for name, value in bits(whole).items())


def test_hooks_of_a_run_without_edits() -> None:
    module = Halving(configured(Ridge, **options(regime="sequential", layers=[1])))
    module.finish_run()
    assert not module.totals


@pytest.mark.parametrize("eval_at", ["null", "[2,6]"])
def test_only_the_end_is_measured_on_it(
    eval_at: str, tiny_folder: Callable[..., str], tmp_path: Path, rows_of: Rows
) -> None:
    """Rows right after an edit, and of the curve, are those of the editor alone; `end` and the saved delta are not."""
    few = {"v_num_grad_steps": 6, "contexts.lengths": "[[3,1]]", "layers": "[0,1]"}
    common = {"data.batch_size": 2, "metrics.eval_at": eval_at, "run.root": tmp_path}
    data = city_facts(tmp_path / "facts.jsonl", 6)
    alone = {"model": "tests.support.ridge.Ridge"} | {f"model.{name}": value for name, value in few.items()}
    main([*sequential_run(tiny_folder, data, alone | common), "--run.name", "alone"])
    wrapped = {"model": "tests.support.halving.Halving", "model.editor": "tests.support.ridge.Ridge"}
    wrapped |= {f"model.editor.{name}": value for name, value in few.items()}
    main([*sequential_run(tiny_folder, data, wrapped | common), "--run.name", "halved"])
    rows = {name: rows_of(tmp_path / name) for name in ("alone", "halved")}
    moments = {row["measured_at"] for row in rows["alone"]}
    assert moments == {"edit", "end"} | (set() if eval_at == "null" else {"at_2", "at_6"})
    for measured_at in moments:
        one, other = ([r["probes"] for r in rows[name] if r["measured_at"] == measured_at] for name in rows)
        assert (one == other) == (measured_at != "end"), measured_at
    one, other = (load_delta(tmp_path / name / "delta")[0] for name in rows)
    torch.testing.assert_close(dense(other), dense(one) / 2)
