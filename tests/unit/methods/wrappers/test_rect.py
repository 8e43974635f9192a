"""RECT against a dense reference in float64 (baselines 1.19, identity 10), and that every batch is restrained once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.callbacks import EditCheckpoint
from kedit.delta.change import WeightChange
from kedit.delta.delta import Delta
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors
from kedit.delta.slices import Slices
from kedit.errors import KeditError
from kedit.methods import PRUNE, RECT, ROME, LoRA
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.wrappers.largest_entries import of_largest
from kedit.runtime.run_folder import CHECKPOINT
from tests.support.small_runs import configured
from tests.support.toy_dense import ToyDense
from tests.unit.methods.locate_then_edit.test_multi_layer import bits, options, run
from tests.unit.methods.wrappers.test_prune import FORMS, SHAPE, fresh, matrices, memit


def reference(delta: Tensor, w: Tensor, percent: float, absolute: bool = False) -> Tensor:
    """The entries in the order of their scores, the first k percent of them."""
    delta, w = delta.double(), w.double()
    score = delta.abs() / (w.abs() + 1e-8) if absolute else (delta / (w + 1e-8)).abs()
    order = score.flatten().argsort(descending=True)[: round(delta.numel() * percent / 100)]
    kept = torch.zeros_like(delta).flatten()
    kept[order] = delta.flatten()[order]
    return kept.reshape(delta.shape)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("percent", [1.0, 25.0, 40.0])
@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("rows", "columns")])
def test_it_is_the_dense_reference(form: str, percent: float, absolute: bool) -> None:
    torch.manual_seed(0)
    change, w = FORMS[form](), torch.randn(SHAPE)
    found = of_largest(change, w, percent, absolute)
    assert isinstance(found, Dense)
    assert torch.equal(found.matrix.double(), reference(change.dense(), w, percent, absolute))
    kept = found.matrix != 0
    assert torch.equal(found.matrix[kept], change.dense()[kept]), "kept entries are Delta's"
    assert int(kept.sum()) == round(240 * percent / 100)


@pytest.mark.parametrize("form", ["rows", "columns"])
def test_lines_stay_lines(form: str) -> None:
    torch.manual_seed(0)
    change, w = FORMS[form](), torch.randn(SHAPE)
    found = of_largest(change, w, 10.0)
    assert isinstance(found, Slices)
    assert torch.equal(found.dense().double(), reference(change.dense(), w, 10.0))
    assert of_largest(change, w, 40.0) is change, "all lines together have fewer entries"


@pytest.mark.parametrize("form", FORMS)
def test_all_entries_are_the_change_itself(form: str) -> None:
    torch.manual_seed(0)
    change = FORMS[form]()
    assert of_largest(change, torch.randn(SHAPE), 100.0) is change


def test_ties_are_kept_and_the_least_share_is_nothing() -> None:
    w = torch.ones(2, 5)
    change = Dense(torch.tensor([[1.0, 2, 2, 2, 2], [0, 0, 0, 0, 3]]))
    assert of_largest(change, w, 20.0).dense().tolist() == [[0, 2, 2, 2, 2], [0, 0, 0, 0, 3]]
    assert not of_largest(change, w, 1.0).dense().any()


def test_a_weight_that_cancels_epsilon() -> None:
    w = torch.tensor([[-1e-8, 1e-8, 1.0]], dtype=torch.float64)
    change = Dense(torch.tensor([[1e-9, 1.0, 1.0]]))
    assert of_largest(change, w, 34.0).dense().tolist() == [[torch.tensor(1e-9).item(), 0, 0]]
    assert of_largest(change, w, 34.0, absolute=True).dense().tolist() == [[0, 1, 0]]
    still = Dense(torch.tensor([[0.0, 1.0, 1.0]]))
    assert of_largest(still, w, 34.0).dense().tolist() == [[0, 1, 0]], "0 / 0 is no change"


def around(editor: Any, **more: Any) -> Any:
    return configured(RECT, editor, **more)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("regime", ["single", "batch"])
def test_every_delta_has_its_largest_entries(regime: Any, kind: str) -> None:
    lm = fresh(kind)
    before = matrices(lm)
    plain = run(configured(memit, regime=regime), fresh(kind), batch_size=5)
    for one, other in zip(plain, run(around(memit(), regime=regime), lm, batch_size=5), strict=True):
        assert other.baseline_deltas is not None
        for alone, base, left in zip(one.deltas, other.baseline_deltas, other.deltas, strict=True):
            assert alone is not None
            assert base is not None
            assert left is not None
            assert left.kinds == [Dense]
            for path, change in alone.of_kind(Factors).items():
                assert torch.equal(base.of_kind(Factors)[path].left, change.left)
                wanted = reference(change.dense(), before[path], 40.0)
                assert torch.equal(left.of_kind(Dense)[path].matrix.double(), wanted)
        assert all(0 < outcome.info["rect_share"] < 1 for outcome in other.outcomes)


def test_each_batch_is_restrained_once_beside_the_weights_that_it_finds() -> None:
    lm, editor = fresh(), ToyDense(0.1)
    module = around(editor, regime="sequential")
    (path,) = [path for path in matrices(lm) if ".1." in path]
    first = matrices(lm)[path]
    batches = run(module, lm, batch_size=2)
    now = first.clone()
    for one, other, seen in zip(editor.made, batches, editor.seen, strict=True):
        torch.testing.assert_close(seen, now, atol=1e-6, rtol=1e-6)
        wanted = reference(whole(one), seen, 40.0)
        assert torch.equal(whole(other.deltas[0]).double(), wanted)
        now += wanted.float()
    torch.testing.assert_close(matrices(lm)[path], now, atol=1e-6, rtol=1e-6)
    assert len(module.deltas) == 1, "kept as their sum"


def whole(delta: Delta | None) -> Tensor:
    (change,) = [change for _, own in (delta or Delta()).items() for change in own]
    assert isinstance(change, WeightChange)
    return change.dense()


@pytest.mark.parametrize("done", [1, 2])
def test_a_resumed_run_restrains_nothing_again(done: int, tmp_path: Path) -> None:
    whole, second = fresh(), fresh()
    run(around(memit(), regime="sequential"), whole, batch_size=2)
    kept = {"default_root_dir": str(tmp_path), "callbacks": [EditCheckpoint()], "max_epochs": done}
    run(around(memit(), regime="sequential"), fresh(), batch_size=2, **kept)
    run(around(memit(), regime="sequential"), second, batch_size=2, ckpt_path=str(tmp_path / CHECKPOINT))
    assert all(torch.equal(value, bits(second)[name]) for name, value in bits(whole).items())


def test_prune_around_it_and_the_other_way_round() -> None:
    """Both restrain, whichever is outside; PRUNE at the end."""
    found = []
    for make in (lambda: PRUNE(RECT(memit()), halve=True), lambda: RECT(PRUNE(memit(), halve=True))):
        lm = fresh()
        module = configured(make, regime="sequential")
        run(module, lm, batch_size=2)
        assert module.finished
        found.append(matrices(lm))
    for path, matrix in found[0].items():
        torch.testing.assert_close(found[1][path], matrix, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RECT(RECT(ROME())), "model.editor: RECT around RECT"),
        (lambda: RECT(ROME(), percent=0.0), "model.percent: 0.0 is not above 0"),
        (lambda: RECT(ROME(), percent=101.0), "model.percent: 101.0 is more than 100"),
    ],
)
def test_slips(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(KeditError, match=message):
        make()


def test_failed_edits_stay_failed() -> None:
    lm = fresh()
    broken = options(regime="single", v_lr=float("1e30"), layers=[1])
    batches = run(around(memit(**{k: v for k, v in broken.items() if k != "regime"}), regime="single"), lm)
    failed = [
        (outcome, delta) for batch in batches for outcome, delta in zip(batch.outcomes, batch.deltas, strict=True)
    ]
    for outcome, delta in failed:
        assert (outcome.error is None) == (delta is not None)


def test_an_adapter_that_is_trained_on_and_on_is_refused() -> None:
    method = RECT(LoRA(steps=1)).configure(edit=EditConfig("sequential"))
    with pytest.raises(KeditError, match=r"^edit\.regime: LoRA"):
        method.setup("fit")
