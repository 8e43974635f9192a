"""MEMIT and EMMET as methods: the spreading loop, the regimes, failures, and that no weight is left changed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from kedit.callbacks import EditCheckpoint
from kedit.cli.options.parts import TRAINER_DEFAULTS
from kedit.covariance import StatsConfig
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.errors import KeditError
from kedit.forward.replay import Site
from kedit.keyvalue import ValueOptimization
from kedit.keyvalue.contexts import ContextConfig
from kedit.keyvalue.keys import hidden_states, mean_keys
from kedit.keyvalue.lane_memory import lane_bytes
from kedit.methods import EMMET, MEMIT
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.module import EditingModule
from kedit.methods.locate_then_edit import multi_layer
from kedit.methods.locate_then_edit.multi_layer import MultiLayerEditor
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.request import EditRequest
from kedit.runtime.run_folder import CHECKPOINT
from tests.support.device import ACCELERATOR
from tests.support.runs_in_memory import Given, Watch
from tests.support.small_runs import configured
from tests.support.tiny_models import tiny_lm

REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "The mother tongue of {} is", "Danielle Darrieux", "English tea"),
    EditRequest("3", "{} is located in", "The Space Needle", "Tokyo"),
    EditRequest("4", "{} was", "Windows", "developed by Microsoft"),
    EditRequest("5", "It rains in {}, and", "Spain", "Cairo"),
]
TEXTS = ContextConfig(texts=["The meeting was. {}", "Because of the rain. {}"])
BARE = ContextConfig(lengths=[])


@pytest.fixture
def lm() -> LM:
    return tiny_lm("llama", n_layers=4, d_model=16, d_ff=40)


def options(**changed: Any) -> dict[str, Any]:
    small = {"v_num_grad_steps": 5, "contexts": TEXTS, "stats": StatsConfig(tokens=400), "lanes": 8, "layers": [1, 2]}
    return small | changed


def run(
    module: EditingModule, lm: LM, requests: list[EditRequest] = REQUESTS, batch_size: int = 5, **trainer: Any
) -> list[EditBatch]:
    keep = Watch()
    module.use_lm(lm)
    resume = trainer.pop("ckpt_path", None)
    callbacks = [keep, *trainer.pop("callbacks", [])]
    settings = TRAINER_DEFAULTS | {
        "accelerator": ACCELERATOR,
        "logger": False,
        "enable_checkpointing": bool(callbacks[1:]),
    }
    Trainer(**(settings | trainer), callbacks=callbacks).fit(
        module, datamodule=Given(requests, batch_size), ckpt_path=resume, weights_only=True
    )
    return keep.batches


def dense(delta: Delta | None) -> Tensor:
    """All changed matrices in a row, by path."""
    assert delta is not None
    return torch.cat([factors.dense().flatten() for _, factors in sorted(delta.of_kind(Factors).items())])


def bits(lm: LM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


@pytest.mark.parametrize("method", [MEMIT, EMMET])
@pytest.mark.parametrize("regime", ["single", "batch"])
def test_weights_are_left_as_they_were(method: type[MultiLayerEditor], regime: Any, lm: LM) -> None:
    before = bits(lm)
    (batch,) = run(configured(method, **options(regime=regime)), lm)
    assert [outcome.error for outcome in batch.outcomes] == [None] * 5
    assert len(batch.deltas) == (5 if regime == "single" else 1)
    assert all(dense(delta).any() for delta in batch.deltas)
    assert all(torch.equal(before[name], value) for name, value in lm.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def test_sequential_commits_the_sum(lm: LM) -> None:
    module, before = configured(MEMIT, **options(regime="sequential")), bits(lm)
    batches = run(module, lm, batch_size=2)
    assert [len(batch.records) for batch in batches] == [2, 2, 1]
    total = Delta.concat(module.deltas)
    for layer in (1, 2):
        w, path = weight(lm.arch.module(lm.model, "mlp_out", layer)), lm.arch.path("mlp_out", layer)
        torch.testing.assert_close(
            w, before[f"{path}.weight"] + total.of_kind(Factors)[path].dense(), atol=1e-5, rtol=1e-5
        )
    changed = {name for name, value in lm.model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {f"{lm.arch.path('mlp_out', layer)}.weight" for layer in (1, 2)}


@pytest.mark.parametrize("regime", ["single", "batch"])
def test_lanes_are_only_a_matter_of_speed(regime: Any, lm: LM) -> None:
    """Side by side or one after the other: the same edits; in the batch regime lanes cut v* into chunks."""
    fast, slow = configured(MEMIT, **options(regime=regime)), configured(MEMIT, **options(regime=regime, lanes=1))
    (together,) = run(fast, lm)
    alone = run(slow, lm)
    assert slow.steps_per_batch == (4 if regime == "single" else 20)

    def by_record(batches: list[EditBatch]) -> dict[str, tuple[Tensor, Any]]:
        return {
            outcome.record.request.case_id: (dense(batch.deltas[min(i, len(batch.deltas) - 1)]), outcome.info)
            for batch in batches
            for i, outcome in enumerate(batch.outcomes)
        }

    one, other = by_record([together]), by_record(alone)
    assert one.keys() == other.keys()
    for name, (delta, info) in one.items():
        torch.testing.assert_close(delta, other[name][0], atol=2e-4 * float(delta.abs().max()), rtol=1e-3)
        assert info["steps"] == other[name][1]["steps"] > 0
        assert info["residual_left"] == pytest.approx(other[name][1]["residual_left"], rel=1e-3)
    assert len(alone) == (5 if regime == "single" else 1)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("layers", [[2], [1, 2, 3]])
def test_an_exact_edit_on_bare_keys_reaches_z(kind: str, layers: list[int]) -> None:
    """Identity 11: lambda ~ 0 and the bare prompt's own key bring h to z; averaged keys leave a gap."""
    left = {}
    for name, contexts in (("bare", BARE), ("averaged", TEXTS)):
        module = configured(MEMIT, **options(layers=layers, mom2_update_weight=1e-8, contexts=contexts, regime="batch"))
        (batch,) = run(module, tiny_lm(kind, n_layers=4, d_model=16, d_ff=40))
        left[name] = [outcome.info["residual_left"] for outcome in batch.outcomes]
    assert max(left["bare"]) < 1e-3
    assert min(left["averaged"]) > 1e-2


class TwoSites(EMMET):
    """As PMET has it: v* at the attention and at the MLP, the MLP's value is solved for, residuals by square roots."""

    def sites(self) -> list[Site]:
        layer = self.edited_layers[-1]
        return [Site("attn", layer), Site("mlp", layer)]

    def divisor(self, left: int) -> float:
        return math.sqrt(left)


@pytest.mark.parametrize("regime", ["single", "batch", "sequential"])
def test_two_sites_and_another_divisor(regime: Any, lm: LM) -> None:
    """The MLP's value is reached in the last layer; the first one got its residual divided by the root of 2."""
    module = configured(TwoSites, **options(emmet_lambda=0.0, contexts=BARE, regime=regime))
    clean = tiny_lm("llama", n_layers=4, d_model=16, d_ff=40)
    (batch,) = run(module, lm, REQUESTS[:3])
    assert max(outcome.info["residual_left"] for outcome in batch.outcomes) < 1e-3
    requests = [outcome.record.request for outcome in batch.outcomes]
    path = clean.arch.path("mlp_out", 1)
    before, keys = hidden_states(clean, requests, 2, role="mlp"), mean_keys(clean, requests, ["{}"], [1.0], 1)
    for i, outcome in enumerate(batch.outcomes):
        delta = batch.deltas[i if regime == "single" else 0]
        assert delta is not None
        first = keys[i] @ delta.of_kind(Factors)[path].dense().T.double()
        with edited(clean.model, delta):
            z = hidden_states(clean, requests[i : i + 1], 2, role="mlp")[0]
        torch.testing.assert_close(first * math.sqrt(2), z - before[i], atol=1e-3, rtol=1e-3)
        assert outcome.info["residual"] == pytest.approx(float((z - before[i]).norm()), rel=1e-3)


@pytest.mark.parametrize("inverse", [False, True])
def test_statistics_are_made_as_far_as_they_are_needed(inverse: bool, lm: LM, tmp_path: Path) -> None:
    """A covariance without an inverse stops only a method that inverts it, and does so before the first edit."""

    class Projects(MEMIT):
        needs_inverse = inverse

        def solve(self, layer: int, keys: Tensor, residuals: Tensor) -> Factors:
            space = self.covariances[layer].null_space(1e-6)
            assert 0 < space.rank < 40
            return Factors(residuals.T, space.project(keys) / 100)

    text = tmp_path / "text.txt"
    text.write_text("The capital of France is Paris. Windows")
    few = StatsConfig(corpus=str(text), tokens=30, ridge=0.0)
    module = configured(Projects, **options(stats=few, regime="batch"))
    if inverse:
        with pytest.raises(KeditError, match="cannot be inverted"):
            run(module, lm)
        return
    (batch,) = run(module, lm)
    assert [outcome.error for outcome in batch.outcomes] == [None] * 5


@pytest.mark.parametrize("regime", ["single", "batch"])
def test_every_layer_sees_the_changes_below_it(regime: Any, lm: LM) -> None:
    """With exact solves Delta_i k_i = (z - h_i) / (L - i), k_i and h_i on the model that has the changes so far."""
    layers = [0, 1, 2]
    module = configured(EMMET, **options(layers=layers, emmet_lambda=0.0, contexts=BARE, regime=regime))
    (batch,) = run(module, lm, REQUESTS[:3])
    paths = [lm.arch.path("mlp_out", layer) for layer in layers]
    of_delta = [[outcome] for outcome in batch.outcomes] if regime == "single" else [batch.outcomes]
    for delta, outcomes in zip(batch.deltas, of_delta, strict=True):
        assert delta is not None
        requests = [outcome.record.request for outcome in outcomes]
        adds = [delta.of_kind(Factors)[path].dense().T.double() for path in paths]
        states = []  # h and keys at every layer
        for i, layer in enumerate(layers):
            with edited(lm.model, *(Delta({path: delta.of_kind(Factors)[path]}) for path in paths[:i])):
                states.append((hidden_states(lm, requests, 2), mean_keys(lm, requests, ["{}"], [1.0], layer)))
        z = states[0][0] + 3 * states[0][1] @ adds[0]
        norms = (z - states[0][0]).norm(dim=-1).tolist()
        assert [outcome.info["residual"] for outcome in outcomes] == pytest.approx(norms, rel=1e-3)
        for i in (1, 2):
            h, keys = states[i]
            torch.testing.assert_close(keys @ adds[i], (z - h) / (3 - i), atol=1e-3, rtol=1e-3)
            stale = mean_keys(lm, requests, ["{}"], [1.0], layers[i])
            assert (keys - stale).norm() > 0.01 * keys.norm()


def test_the_strength_is_the_share_that_lambda_leaves(lm: LM) -> None:
    module = configured(MEMIT, **options(regime="single", mom2_update_weight=30.0))
    (batch,) = run(module, lm)
    keys = mean_keys(lm, REQUESTS, module.contexts, [0.5, 0.25, 0.25], 1)
    q = module.covariances[1].quad(keys, keys) / 30.0
    order = [int(record.request.case_id) - 1 for record in batch.records]
    found = [outcome.info["strength"][0] for outcome in batch.outcomes]
    assert found == pytest.approx((q / (1 + q))[order].tolist(), rel=1e-4)
    assert 0.02 < min(found) < max(found) < 0.98


@pytest.mark.parametrize("regime", ["single", "batch"])
def test_two_requests_with_one_subject(regime: Any, lm: LM) -> None:
    twins = [EditRequest("a", "{} is", "Berlin", "Rome"), EditRequest("b", "{} was", "Berlin", "Tokyo")]
    (batch,) = run(configured(EMMET, **options(regime=regime, emmet_lambda=0.0, layers=[1])), lm, twins)
    errors = [outcome.error for outcome in batch.outcomes]
    if regime == "single":
        assert errors == [None, None]
        return
    assert all(error is not None and "Set emmet_lambda above 0" in error for error in errors)
    assert batch.deltas == [None]
    (batch,) = run(configured(EMMET, **options(regime="batch", layers=[1])), lm, twins)
    assert [outcome.error for outcome in batch.outcomes] == [None, None]


@pytest.mark.parametrize("regime", ["single", "batch"])
def test_a_request_without_a_value_is_left_out(regime: Any, lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    three = REQUESTS[:3]
    (want,) = run(configured(MEMIT, **options(regime=regime)), lm, three[:2])

    def last_fails(lanes: ValueOptimization, i: int) -> str | None:
        return "no" if i == lanes.objective.n_lanes - 1 else None

    monkeypatch.setattr(multi_layer, "lane_error", last_fails)
    monkeypatch.setattr(multi_layer, "suffix_length", lambda record: int(record.request.case_id))
    (batch,) = run(configured(MEMIT, **options(regime=regime)), lm, three)
    failed = [outcome.record.request.case_id for outcome in batch.outcomes if outcome.error == "no"]
    assert failed == ["3"]
    if regime == "single":
        by_id = {r.request.case_id: d for r, d in zip(batch.records, batch.deltas, strict=True)}
        assert by_id["3"] is None
        got = [by_id[record.request.case_id] for record in want.records]
    else:
        got = batch.deltas
    for one, other in zip(got, want.deltas, strict=True):
        torch.testing.assert_close(dense(one), dense(other), atol=2e-4 * float(dense(other).abs().max()), rtol=1e-3)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    def fresh() -> LM:
        return tiny_lm("gpt2", n_layers=3, d_model=16, d_ff=40)

    def module() -> MEMIT:
        return configured(MEMIT, **options(regime="sequential", layers=[0, 1], lanes=1))

    whole, first, second = fresh(), fresh(), fresh()
    run(module(), whole, batch_size=2)
    checkpoint = EditCheckpoint()
    kept = {"default_root_dir": str(tmp_path), "callbacks": [checkpoint]}
    assert len(run(module(), first, batch_size=2, max_epochs=2, **kept)) == 2
    rest = run(module(), second, batch_size=2, ckpt_path=str(tmp_path / CHECKPOINT))
    assert [batch.index for batch in rest] == [2]
    assert all(torch.equal(value, bits(second)[name]) for name, value in bits(whole).items())


@pytest.mark.parametrize(("free", "lanes"), [(None, 4), (10**12, 4), (0, 1), ("two", 2)])
def test_short_memory_means_fewer_lanes(free: Any, lanes: int, lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than usual, never another number than the user's, and the same edits."""
    each = lane_bytes(lm, 4, 40)
    monkeypatch.setattr(multi_layer, "free_memory", lambda: 2 * each if free == "two" else free)
    module = configured(MEMIT, **options(regime="batch", lanes=0))
    (batch,) = run(module, lm)
    assert module.lane_count() == lanes
    (usual,) = run(configured(MEMIT, **options(regime="batch", lanes=4)), lm)
    torch.testing.assert_close(dense(batch.deltas[0]), dense(usual.deltas[0]), atol=2e-3, rtol=1e-3)
    single = configured(MEMIT, **options(regime="single", lanes=0))
    run(single, lm)
    named = configured(MEMIT, **options(regime="batch", lanes=3))
    run(named, lm)
    assert (single.lane_count(), named.lane_count()) == (4, 3)
