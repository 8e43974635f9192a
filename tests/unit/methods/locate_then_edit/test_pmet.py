"""PMET: two vectors, square roots, the rule that eases the NLL and ends v*."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kedit.delta.apply import edited
from kedit.delta.factors import Factors
from kedit.errors import KeditError
from kedit.forward.replay import Site
from kedit.keyvalue import NLL, KLDivergence, ValueObjective, WeightDecay, optimise
from kedit.keyvalue.adaptive import EASED, ENOUGH, AdaptiveNLL, AdaptiveValues
from kedit.keyvalue.keys import hidden_states, mean_keys
from kedit.keyvalue.terms import State
from kedit.methods import PMET
from kedit.model.lm import LM
from kedit.request import EditRequest
from tests.support.small_runs import configured
from tests.support.tiny_models import tiny_lm
from tests.unit.methods.locate_then_edit.test_multi_layer import BARE, REQUESTS, options, run


def fresh(kind: str = "llama") -> LM:
    return tiny_lm(kind, n_layers=4, d_model=16, d_ff=40)


def state(logp: torch.Tensor, tokens: list[int], lanes: list[int]) -> State:
    """What a term needs to weigh labels: their log-probabilities, tokens and lanes."""
    token, lane = torch.tensor(tokens), torch.tensor(lanes)
    n = int(lane.max()) + 1
    weight = 1.0 / torch.bincount(lane).float()[lane]
    empty: dict[str, Any] = dict.fromkeys(("v_init", "kl_logp", "kl_reference", "row_lane", "bare"), torch.zeros(n, 1))
    return State(
        delta=torch.zeros(n, 4), n_sites=2, label_logp=logp, target_logp=logp.gather(1, token[:, None])[:, 0],
        label_lane=lane, label_weight=weight, lanes=torch.arange(n), hidden={}, **empty,
    )  # fmt: skip


def test_a_lane_whose_labels_are_all_the_argmax_weighs_a_tenth() -> None:
    logp = torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 1, 4], [2, 1, 0]]).log_softmax(-1)
    given = state(logp, [0, 1, 2, 1], [0, 0, 1, 1])  # lane 0: both right; lane 1: the second is not
    term = AdaptiveNLL()
    found, plain = term(given), NLL()(given)
    assert term.met.tolist() == [True, False]
    assert torch.equal(found, plain * torch.tensor([EASED, 1.0]))


def test_the_rule_ends_a_lane() -> None:
    """A lane is done where the targets are met and the KL term is small; `stop_loss` ends one as before."""
    lm, sites = fresh(), [Site("attn", 2), Site("mlp", 2)]
    nll = AdaptiveNLL()
    terms = [nll, KLDivergence(1.0), WeightDecay(0.5)]
    lanes = AdaptiveValues(ValueObjective(lm, REQUESTS[:4], ["{}"], sites, terms), 0.05)
    nll.met = torch.tensor([True, True, False, False])
    kl = torch.tensor([ENOUGH, 2 * ENOUGH, ENOUGH, 0.0])
    assert lanes.finished({"nll": kl, "kl": kl}, torch.tensor([1.0, 1.0, 1.0, 0.04])).tolist() == [
        True, False, False, True,
    ]  # fmt: skip


def test_a_lane_ends_at_the_first_argmax_where_kl_does_not_count() -> None:
    """Its NLL is still far from 0 when the target becomes the most probable token."""
    lm = tiny_lm("gpt2", n_layers=4, d_model=64, d_ff=160)
    terms = [nll := AdaptiveNLL(), KLDivergence(0.0), WeightDecay(0.0)]
    sites = [Site("attn", 2), Site("mlp", 2)]
    request = EditRequest("a", "The capital of {} is", "Italy", "Dutch")
    lanes = AdaptiveValues(ValueObjective(lm, [request], ["{}"], sites, terms), -math.inf, 50.0)
    optimise(lanes, lr=0.5, steps=200)
    assert 0 < int(lanes.steps) < 199
    assert bool(nll.met)
    assert float(lanes.terms["nll"]) > 0.5 * EASED


def test_both_vectors_are_clamped_by_themselves() -> None:
    lm, sites = fresh(), [Site("attn", 2), Site("mlp", 2)]
    terms = [AdaptiveNLL(), KLDivergence(1.0), WeightDecay(0.5)]
    lanes = AdaptiveValues(ValueObjective(lm, REQUESTS, ["{}"], sites, terms), -math.inf, 0.25)
    optimise(lanes, lr=0.5, steps=6)
    for delta, init in zip(
        lanes.objective.split(lanes.delta), lanes.objective.split(lanes.objective.v_init), strict=True
    ):
        assert bool((delta.norm(dim=1) <= 0.25 * init.norm(dim=1) * (1 + 1e-5)).all())
        assert bool((delta.norm(dim=1) > 0).all())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("regime", ["single", "batch", "sequential"])
def test_layers_take_over_by_square_roots(regime: Any, kind: str) -> None:
    """lambda ~ 0 on bare keys: Delta_1 k = (z - MLP(k)) / sqrt 2, and the MLP's value is reached in the last layer."""
    lm, clean = fresh(kind), fresh(kind)
    module = configured(PMET, **options(mom2_update_weight=1e-8, contexts=BARE, regime=regime))
    (batch,) = run(module, lm, REQUESTS[:3], batch_size=3)
    requests = [outcome.record.request for outcome in batch.outcomes]
    assert module.sites() == [Site("attn", 2), Site("mlp", 2)]
    assert max(outcome.info["residual_left"] for outcome in batch.outcomes) < 1e-3
    before, keys = hidden_states(clean, requests, 2, role="mlp"), mean_keys(clean, requests, ["{}"], [1.0], 1)
    for i, outcome in enumerate(batch.outcomes):
        delta = batch.deltas[i if regime == "single" else 0]
        assert delta is not None
        assert set(delta.paths) == {clean.arch.path("mlp_out", 1), clean.arch.path("mlp_out", 2)}, "attention stays"
        first = keys[i] @ delta.of_kind(Factors)[clean.arch.path("mlp_out", 1)].dense().T.double()
        with edited(clean.model, delta):
            z = hidden_states(clean, requests[i : i + 1], 2, role="mlp")[0]
        torch.testing.assert_close(first * math.sqrt(2), z - before[i], atol=1e-3, rtol=1e-3)
        assert {"nll", "kl", "wd"} < set(outcome.info)


def test_published_values() -> None:
    row = PMET.published.row(("gptj", 28, 4096, 16384))
    assert row == {
        "layers": (3, 4, 5, 6, 7, 8), "v_lr": 0.2, "v_num_grad_steps": 30, "v_weight_decay": 0.5,
        "clamp_norm_factor": 0.75, "kl_factor": 1.0, "mom2_update_weight": 6000,
    }  # fmt: skip
    module = configured(PMET, **{**options(regime="batch"), "v_num_grad_steps": None, "kl_factor": None})
    run(module, fresh(), REQUESTS[:1])
    about = module.describe()
    assert (about["kl_factor"], about["v_num_grad_steps"], about["clamp_norm_factor"]) == (0.0625, 20, 1.0)


def test_a_negative_kl_factor_is_named() -> None:
    with pytest.raises(KeditError, match=r"^model\.kl_factor"):
        PMET(kl_factor=-1.0)
