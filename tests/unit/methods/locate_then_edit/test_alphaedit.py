"""AlphaEdit as a method, and MEMIT with memory: null spaces, thresholds, what is remembered, resumed runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.callbacks import EditCheckpoint
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.errors import KeditError
from kedit.keyvalue.keys import mean_keys
from kedit.methods import MEMIT, REP, AlphaEdit
from kedit.methods.locate_then_edit.multi_layer import MultiLayerEditor
from kedit.model.lm import LM
from kedit.request import EditRequest
from kedit.runtime.run_folder import CHECKPOINT
from tests.support.small_runs import configured
from tests.support.tiny_models import tiny_lm
from tests.unit.methods.locate_then_edit.test_multi_layer import REQUESTS, bits, dense, options, run

PLACES = ("Rome", "Tokyo", "Seattle", "Spain", "Cologne", "Ulm", "Zundert")
MANY = [
    EditRequest(str(i), ("{} lies in", "The city of {} is", "{} was")[i % 3], f"{PLACES[i % 7]} {i}", "Paris tea")
    for i in range(24)
]


def fresh(kind: str = "llama") -> LM:
    return tiny_lm(kind, n_layers=4, d_model=16, d_ff=20)


def alphaedit(**changed: Any) -> AlphaEdit:
    given: dict[str, Any] = {"nullspace_relative": 1.0, "l2": 1.0}
    return configured(AlphaEdit, **(options(regime="sequential") | given | changed))


def with_memory(**changed: Any) -> MEMIT:
    given: dict[str, Any] = {"past_keys": True}
    return configured(MEMIT, **(options(regime="sequential") | given | changed))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("regime", ["single", "batch", "sequential"])
def test_changes_are_in_the_null_space(regime: Any, kind: str) -> None:
    """Delta P = Delta, and no key outside of the null space is moved."""
    module, lm = alphaedit(regime=regime), fresh(kind)
    batches = run(module, lm, batch_size=2)
    assert [outcome.error for batch in batches for outcome in batch.outcomes] == [None] * 5
    assert {layer: 0 < metric.space.rank < 20 for layer, metric in module.spaces.items()} == {1: True, 2: True}
    for delta in (delta for batch in batches for delta in batch.deltas):
        assert delta is not None
        for layer, metric in module.spaces.items():
            change = delta.of_kind(Factors)[lm.arch.path("mlp_out", layer)].dense().double()
            assert float((change - metric.project(change)).norm()) < 1e-5 * float(change.norm())
            assert float((change @ metric.space.leading).norm()) < 1e-5 * float(change.norm())


def test_describe_and_log_say_what_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    module = alphaedit()
    with caplog.at_level("INFO"):
        run(module, fresh(), REQUESTS[:1], batch_size=1)
    about = module.describe()
    assert (about["nullspace_threshold"], about["nullspace_relative"], about["l2"]) == (None, 1.0, 1.0)
    assert about["nullspace_rank"] == {str(layer): metric.space.rank for layer, metric in module.spaces.items()}
    for layer, rank in about["nullspace_rank"].items():
        assert f"layer {layer}: {rank} of 20 directions are in the null space" in caplog.text


def test_a_threshold_that_keeps_nothing_or_everything(caplog: pytest.LogCaptureFixture) -> None:
    for option in ("nullspace_threshold", "nullspace_relative"):
        nothing = alphaedit(**{"nullspace_relative": None, option: 1e-12})
        with pytest.raises(
            KeditError, match=rf"^model\.{option}: the keys of .* have no direction .* larger threshold"
        ):
            run(nothing, fresh(), REQUESTS[:1])
    run(alphaedit(nullspace_relative=None, nullspace_threshold=1e9), fresh(), REQUESTS[:1])
    assert caplog.text.count("that is all of them, so nothing protects ordinary keys") == 2


def test_the_published_threshold_gives_way_to_the_users() -> None:
    found = {}
    for name, given in {
        "none": {},
        "absolute": {"nullspace_threshold": 3.0},
        "relative": {"nullspace_relative": 2.0},
    }.items():
        module = alphaedit(nullspace_relative=None, l2=None) if not given else configured(
            AlphaEdit, **options(regime="sequential"), **given
        )  # fmt: skip
        run(module, fresh(), REQUESTS[:1])
        found[name] = (module.nullspace_threshold, module.nullspace_relative, module.l2)
    assert found == {"none": (None, 1.0, 10.0), "absolute": (3.0, None, 10.0), "relative": (None, 2.0, 10.0)}
    row = AlphaEdit.published.row(("gptj", 28, 4096, 16384))
    assert row is not None
    assert (row["nullspace_threshold"], row["l2"], row["layers"]) == (2e-2, 10.0, (3, 4, 5, 6, 7, 8))
    assert not any("mom2_update_weight" in row for row in AlphaEdit.published.models.values())


@pytest.mark.parametrize(
    ("option", "value"), [("nullspace_threshold", 0.0), ("nullspace_relative", -1.0), ("l2", 0.0), ("l2", float("nan"))]
)
def test_bad_options_are_named(option: str, value: float) -> None:
    with pytest.raises(KeditError, match=rf"^model\.{option}"):
        AlphaEdit(**{option: value})  # type: ignore[arg-type]
    with pytest.raises(KeditError, match=r"^model\.nullspace_threshold"):
        AlphaEdit(nullspace_threshold=1.0, nullspace_relative=1.0)


def test_memory_is_for_edits_that_accumulate() -> None:
    with pytest.raises(KeditError, match=r"^model\.past_keys: in the regime batch"):
        run(with_memory(regime="batch"), fresh(), REQUESTS[:1])
    module = alphaedit(regime="batch")
    run(module, fresh(), batch_size=2)
    assert module.past is not None
    assert module.past.state([r.case_id for r in REQUESTS])["past_keys"]["cases"] == []


@pytest.mark.parametrize("make", [alphaedit, with_memory])
def test_earlier_edits_are_held(make: Callable[..., MultiLayerEditor]) -> None:
    """A later batch moves the values of earlier keys less than it does when they are forgotten."""
    module, forgetful = make(layers=[1]), make(layers=[1])
    forgetful.after_commit = lambda batch: None  # type: ignore[method-assign]
    first, second = run(module, fresh(), REQUESTS[:4], batch_size=2)
    _, alone = run(forgetful, fresh(), REQUESTS[:4], batch_size=2)
    moved = [
        float((dense(batch.deltas[0]).view(16, 20).double() @ first.keys[1].T).norm()) for batch in (second, alone)
    ]
    assert moved[0] < 0.9 * moved[1]


def test_the_first_batch_is_memits() -> None:
    """There is nothing to remember yet; what results say of a run without the option is what it was."""
    lms, modules = [fresh(), fresh()], [configured(MEMIT, **options(regime="sequential")), with_memory()]
    for module, lm in zip(modules, lms, strict=True):
        run(module, lm, REQUESTS[:2], batch_size=2)
    path = lms[0].arch.path("mlp_out", 1) + ".weight"
    torch.testing.assert_close(bits(lms[1])[path], bits(lms[0])[path], atol=1e-6, rtol=1e-5)
    plain, remembers = (module.describe() for module in modules)
    assert remembers == plain | {"past_keys": True}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_keys_read_again_after_the_edit_are_those_that_were_solved_with(kind: str) -> None:
    """Published codes read them again: a key does not depend on its own layer's matrix, nor on those above."""
    module, lm = alphaedit(), fresh(kind)
    (batch,) = run(module, lm, REQUESTS[:3], batch_size=3)
    for layer, keys in batch.keys.items():
        again = mean_keys(lm, [record.request for record in batch.edited], module.contexts, [0.5, 0.25, 0.25], layer)
        torch.testing.assert_close(again, keys, atol=1e-5, rtol=1e-4)
        before = mean_keys(fresh(kind), [r.request for r in batch.edited], module.contexts, [0.5, 0.25, 0.25], layer)
        assert (float((before - keys).norm()) > 1e-3) == (layer == 2), "those of the upper layer know the lower change"


def test_only_edits_that_were_made_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    from kedit.methods.locate_then_edit import multi_layer

    monkeypatch.setattr(multi_layer, "lane_error", lambda lanes, i: "no" if i == 0 else None)
    module = alphaedit(layers=[1])
    batches = run(module, fresh(), REQUESTS[:4], batch_size=2)
    made = [record.request.case_id for batch in batches for record in batch.edited]
    assert len(made) == 2
    assert module.past is not None
    assert len(module.past.of(1, torch.zeros(1, 20))) == 2
    assert module.past.state([r.case_id for r in REQUESTS[:4]])["past_keys"]["cases"] == [(made[0],), (made[1],)]


@pytest.mark.parametrize("make", [alphaedit, with_memory])
@pytest.mark.parametrize("after", [2, 4, 6])
def test_a_resumed_run_ends_with_the_same_bits(
    make: Callable[..., MultiLayerEditor], after: int, tmp_path: Path
) -> None:
    """24 edits of keys of width 20 in batches of 4: interrupted before, at and after the switch to dense."""
    sized = partial(make, v_num_grad_steps=3)
    whole, first, second = fresh(), fresh(), fresh()
    kept = {"default_root_dir": str(tmp_path), "callbacks": [EditCheckpoint()]}
    wanted = run(straight := sized(), whole, MANY, batch_size=4, default_root_dir=str(tmp_path / "whole"))
    assert straight.past is not None
    assert straight.past.is_dense(1)
    run(sized(), first, MANY, batch_size=4, max_epochs=after, **kept)
    rest = run(again := sized(), second, MANY, batch_size=4, ckpt_path=str(tmp_path / CHECKPOINT))
    assert [batch.index for batch in rest] == list(range(after, 6))
    for one, other in zip(wanted[after:], rest, strict=True):
        assert torch.equal(dense(one.deltas[0]), dense(other.deltas[0]))
    assert all(torch.equal(value, bits(second)[name]) for name, value in bits(whole).items())
    cases = [request.case_id for request in MANY]
    state, other_state = (module.edit_state([]) for module in (straight, again))
    assert state == other_state
    assert again.past is not None
    assert len(again.past.state(cases)["past_keys"]["cases"]) == 6


def test_a_wrapped_editor_remembers_and_is_resumed(tmp_path: Path) -> None:
    def wrapped() -> REP:
        return REP(alphaedit(layers=[1]), mode="closed_form")

    kept = {"default_root_dir": str(tmp_path), "callbacks": [EditCheckpoint()]}
    whole, first, second = fresh(), fresh(), fresh()
    run(wrapped(), whole, REQUESTS[:4], batch_size=1)
    run(wrapped(), first, REQUESTS[:4], batch_size=1, max_epochs=2, **kept)
    run(wrapped(), second, REQUESTS[:4], batch_size=1, ckpt_path=str(tmp_path / CHECKPOINT))
    assert all(torch.equal(value, bits(second)[name]) for name, value in bits(whole).items())


def test_half_precision_weights_keep_small_changes() -> None:
    lm = tiny_lm("llama", n_layers=4, d_model=16, d_ff=20, dtype=torch.bfloat16)
    module = alphaedit()
    batches = run(module, lm, batch_size=2)
    assert all(outcome.error is None for batch in batches for outcome in batch.outcomes)
    total = Delta.concat(module.deltas)
    assert all(t.dtype == torch.float32 and bool(t.isfinite().all()) for _, t in total.numbers())
