"""STEAM from end to end on tiny models: around every editor, in every regime, and resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.callbacks import EditCheckpoint
from kedit.covariance import StatsConfig
from kedit.delta.delta import Delta
from kedit.errors import KeditError
from kedit.methods import EMMET, MEMIT, ROME, RROME, STEAM
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.locate_then_edit.base import LocateThenEdit
from kedit.methods.steam import AlignConfig, AnchorConfig
from kedit.methods.steam.bank import AnchorBank
from kedit.model.lm import LM
from kedit.runtime.run_folder import CHECKPOINT
from tests.support.small_runs import configured
from tests.support.steam_cases import FAMILIES, Given, answer_states, naive_alignment, records, run, world
from tests.support.tiny_models import tiny_lm
from tests.unit.methods.locate_then_edit.test_multi_layer import TEXTS, bits, dense

SMALL: dict[str, Any] = {"v_num_grad_steps": 5, "contexts": TEXTS, "stats": StatsConfig(tokens=400), "lanes": 2}
EDITORS: dict[str, Callable[..., LocateThenEdit]] = {
    "ROME": lambda **more: configured(ROME, layer=1, **(SMALL | more)),
    "RROME": lambda **more: configured(RROME, layer=1, **(SMALL | more)),
    "MEMIT": lambda **more: configured(MEMIT, layers=[0, 1], **(SMALL | more)),
    "EMMET": lambda **more: configured(EMMET, layers=[1], **(SMALL | more)),
}
ANCHORS = AnchorConfig(n_min=3)
STRONG = AlignConfig(weighting="fixed", weight=30.0)


def small(kind: str = "llama") -> LM:
    return tiny_lm(kind, n_layers=5, d_model=16, d_ff=40)


def given(batch_size: int = 1) -> Given:
    return Given(records(), world(), batch_size)


def found(batches: list[EditBatch]) -> dict[str, tuple[Delta | None, dict[str, Any]]]:
    """Delta and figures of every record; those of a batch share their delta."""
    return {
        outcome.record.request.case_id: (batch.deltas[min(i, len(batch.deltas) - 1)], outcome.info)
        for batch in batches
        for i, outcome in enumerate(batch.outcomes)
    }


def same_edits(one: list[EditBatch], other: list[EditBatch]) -> None:
    """The same deltas to the bit, and the same figures but for the anchor's."""
    mine, theirs = found(one), found(other)
    assert mine.keys() == theirs.keys()
    for case, (delta, info) in mine.items():
        assert torch.equal(dense(delta), dense(theirs[case][0]))
        assert {k: v for k, v in info.items() if k not in ("anchor", "la")} == theirs[case][1]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("editor", EDITORS)
def test_without_weight_it_is_the_editor(editor: str, kind: str) -> None:
    host = run(EDITORS[editor](), small(kind), given())
    for align in (AlignConfig(ratio=0), AlignConfig(weighting="fixed", weight=0)):
        module = STEAM(EDITORS[editor](), ANCHORS, align)
        batches = run(module, small(kind), given())
        same_edits(batches, host)
        assert module.bank is None
        assert all(info["anchor"] is None for _, info in found(batches).values())
    aligned = found(run(STEAM(EDITORS[editor](), ANCHORS, STRONG), small(kind), given()))
    for case, (delta, info) in aligned.items():
        assert not torch.equal(dense(delta), dense(found(host)[case][0]))
        assert info["anchor"]["lambda"] == 30


@pytest.mark.parametrize("editor", EDITORS)
def test_without_anchors_it_is_the_editor(editor: str, caplog: pytest.LogCaptureFixture) -> None:
    """The last rung of the ladder, for all records and for some."""
    nothing = AnchorConfig(in_context=False, n_min=32)
    host = run(EDITORS[editor](), small(), Given(records()))
    batches = run(STEAM(EDITORS[editor](), nothing, STRONG), small(), Given(records()))
    same_edits(batches, host)
    card = {"source": "none", "n": 0, "relations": 0, "recall": None, "asked": 0, "known": 0}
    assert [info["anchor"] for _, info in found(batches).values()] == [card] * 3
    assert f"3 records have no anchor: they are edited by {editor} alone" in caplog.text

    some = found(run(STEAM(EDITORS[editor](), replace(nothing, n_min=3), STRONG), small(), given()))
    assert {case: info["anchor"]["source"] == "none" for case, (_, info) in some.items()} == {
        "1": False,
        "2": False,
        "3": True,
    }
    theirs = found(host)["3"]
    torch.testing.assert_close(dense(some["3"][0]), dense(theirs[0]), atol=1e-5, rtol=1e-4)
    assert some["3"][1]["steps"] == theirs[1]["steps"]
    assert "1 records have no anchor" in caplog.text


@pytest.mark.parametrize("center", ["none", "generic"])
@pytest.mark.parametrize("schedule", ["constant", "linear_warmup"])
@pytest.mark.parametrize("editor", ["ROME", "MEMIT"])
def test_what_results_say_of_an_edit(editor: str, schedule: Any, center: Any) -> None:
    align = replace(STRONG, schedule=schedule, center=center, layers=[2, 4])
    module = STEAM(EDITORS[editor](v_num_grad_steps=20), ANCHORS, align)
    edits = found(run(module, small(), given()))
    assert module.bank is not None
    centre = module.bank.centre(center)
    assert module.describe()["anchor_sources"] == module.bank.counts()
    assert module.describe()["aligned_layers"] == [2, 4]
    for record in records():
        info = edits[record.request.case_id][1]
        anchor = module.bank.anchor(record)
        assert info["anchor"].items() >= anchor.card().items()
        assert info["anchor"]["lambda"] == 30
        assert info["anchor"]["cosine"]["last"] > info["anchor"]["cosine"]["first"]
        assert anchor.mean is not None
        zero = torch.zeros(module.lm.d_model)
        states = answer_states(module.lm, record.request, module.editor.contexts, "mlp", 1, zero)
        want = 1 - float(naive_alignment(states, anchor.mean, [2, 4], centre))
        assert info["anchor"]["cosine"]["first"] == pytest.approx(want, abs=1e-4)
        assert info["la"] == pytest.approx(30 * (1 - info["anchor"]["cosine"]["last"]), rel=1e-3)


def test_warm_up_takes_half_of_the_steps() -> None:
    module = STEAM(EDITORS["ROME"](v_num_grad_steps=20), ANCHORS, replace(STRONG, schedule="linear_warmup"))
    run(module, small(), given())
    (term, _), *_ = module._terms.values()
    assert term.warmup == 10
    assert STEAM(EDITORS["ROME"]()).align.schedule == "constant"


def test_lambda_is_chosen_for_each_edit_and_lanes_are_only_a_matter_of_speed() -> None:
    edits = [found(run(STEAM(EDITORS["ROME"](lanes=lanes), ANCHORS), small(), given())) for lanes in (1, 3)]
    weights = []
    for case, (delta, info) in edits[0].items():
        other, theirs = edits[1][case]
        torch.testing.assert_close(dense(delta), dense(other), atol=2e-4 * float(dense(other).abs().max()), rtol=1e-3)
        assert info["steps"] == theirs["steps"]
        assert info["anchor"]["lambda"] == pytest.approx(theirs["anchor"]["lambda"], rel=1e-3)
        weights.append(info["anchor"]["lambda"])
    assert len({round(weight, 6) for weight in weights}) == 3
    assert all(0 < weight <= 100 for weight in weights)


def test_a_larger_lambda_brings_the_edit_nearer_to_its_anchor() -> None:
    last = []
    for weight in (0.1, 10.0, 100.0):
        editor = EDITORS["ROME"](v_num_grad_steps=25, v_lr=0.1, clamp_norm_factor=8.0)
        module = STEAM(editor, ANCHORS, replace(STRONG, weight=weight))
        edits = found(run(module, small(), given()))
        last.append([info["anchor"]["cosine"]["last"] for _, info in edits.values()])
    assert all(low < middle < high for low, middle, high in zip(*last, strict=True))


@pytest.mark.parametrize("editor", ["ROME", "MEMIT"])
def test_a_resumed_run_ends_with_the_same_bits(editor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its anchors are of the unedited model, cache or no cache."""
    made: list[AnchorBank] = []

    def bank_without_cache(*args: Any) -> AnchorBank:
        made.append(AnchorBank(*args, keep=False))
        return made[-1]

    monkeypatch.setattr("kedit.methods.steam.module.AnchorBank", bank_without_cache)

    def module() -> STEAM:
        return STEAM(EDITORS[editor](regime="sequential"), ANCHORS, STRONG)

    whole, first, second = small("gpt2"), small("gpt2"), small("gpt2")
    assert len(run(module(), whole, given())) == 3
    checkpoint = EditCheckpoint()
    run(module(), first, given(), max_epochs=1, default_root_dir=str(tmp_path), callbacks=[checkpoint])
    saved = str(tmp_path / CHECKPOINT)
    assert [batch.index for batch in run(module(), second, given(), resume=saved)] == [1, 2]
    assert all(torch.equal(value, bits(second)[name]) for name, value in bits(whole).items())
    assert not torch.equal(*(model.model.state_dict()[f"{model.arch.path('mlp_out', 1)}.weight"]
                             for model in (whole, small("gpt2"))))  # fmt: skip
    means = [[bank.anchor(record).mean for record in records()] for bank in made]
    for of_record in zip(*means, strict=True):
        one, *others = of_record
        assert one is not None
        assert all(other is not None and torch.equal(one, other) for other in others)


def test_a_batch_of_edits_shares_one_system() -> None:
    module = STEAM(EDITORS["MEMIT"](regime="batch"), ANCHORS, STRONG)
    (batch,) = run(module, small(), given(batch_size=3))
    assert [outcome.error for outcome in batch.outcomes] == [None] * 3
    assert len(batch.deltas) == 1
    assert all(outcome.info["anchor"]["lambda"] == 30 for outcome in batch.outcomes)


@pytest.mark.parametrize("weighting", ["grad_ratio", "fixed"])
def test_lanes_that_never_take_a_step(weighting: Any) -> None:
    """With fast_dev_run there is one step for the first chunk of lanes, and none for the others."""
    align = AlignConfig(weighting=weighting)
    module = STEAM(EDITORS["MEMIT"](regime="batch", lanes=1), ANCHORS, align)
    (batch,) = run(module, small(), given(batch_size=3), fast_dev_run=True)
    assert [outcome.error for outcome in batch.outcomes] == [None] * 3
    first, *others = (outcome.info for outcome in batch.outcomes)
    assert first["steps"] == 1
    assert [info["steps"] for info in others] == [0, 0]
    assert all(info["anchor"]["cosine"]["first"] is not None for info in (first, *others))


def test_too_few_objects_for_their_mean() -> None:
    module = STEAM(EDITORS["ROME"](), ANCHORS, replace(STRONG, center="objects"))
    with pytest.raises(KeditError, match=r"model\.align\.center: objects needs anchors of 5 objects, this run has 2"):
        run(module, small(), given())
