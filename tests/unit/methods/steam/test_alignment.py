"""The alignment loss against full forward passes of one prompt each: its value, its gradient, its weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.forward.replay import Role, Site
from kedit.keyvalue import NLL, KLDivergence, ValueObjective, ValueOptimization, WeightDecay, optimise
from kedit.methods.steam.alignment import Alignment
from kedit.model.lm import LM
from tests.support.steam_cases import CONTEXTS, FAMILIES, REQUESTS, answer_states, naive_alignment
from tests.support.tiny_models import KINDS, tiny_lm

N_LAYERS, D = 4, 32
TERMS = (NLL(), KLDivergence(), WeightDecay(0.5))
SITES: list[tuple[Role, int]] = [("mlp", 1), ("output", 1)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def anchors(n: int = len(REQUESTS), seed: int = 1) -> Tensor:
    return random(n, N_LAYERS, D, seed=seed)


def term_of(phi: Tensor, layers: list[int], centre: Tensor | None = None, **more: Any) -> Alignment:
    """An alignment term with lambda 1 from anchors of all layers."""
    more = {"strength": 1.0} | more
    return Alignment(phi[:, layers], layers, None if centre is None else centre[layers], **more)


def objective_of(lm: LM, term: Alignment, role: Role = "mlp", layer: int = 1, requests: Any = REQUESTS) -> Any:
    return ValueObjective(lm, requests, CONTEXTS, [Site(role, layer)], (*TERMS, term))


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(("role", "layer"), SITES)
@pytest.mark.parametrize("layers", [[2], [2, 3]])
def test_it_equals_full_forward_passes(kind: str, role: Role, layer: int, layers: list[int]) -> None:
    """Value and gradient, all contexts, targets of one and more tokens, the last block too."""
    lm, phi = tiny_lm(kind), anchors()
    delta = (5 * random(len(REQUESTS), D)).requires_grad_()
    got = objective_of(lm, term_of(phi, layers), role, layer)(delta)["la"]
    (gradient,) = torch.autograd.grad(got.sum(), delta)
    for i, request in enumerate(REQUESTS):
        single = delta[i].detach().clone().requires_grad_()
        want = naive_alignment(answer_states(lm, request, CONTEXTS, role, layer, single), phi[i], layers)
        torch.testing.assert_close(got[i], want, atol=1e-5, rtol=1e-5)
        (want_gradient,) = torch.autograd.grad(want, single)
        torch.testing.assert_close(gradient[i], want_gradient, atol=1e-3 * float(want_gradient.norm()), rtol=1e-3)


@pytest.mark.parametrize("kind", FAMILIES)
def test_it_is_taken_where_the_first_token_of_the_target_is_predicted(kind: str) -> None:
    """len - T of a row without its last token: not the row's last token."""
    lm, phi = tiny_lm(kind), anchors()
    got = objective_of(lm, term_of(phi, [2, 3]))(random(len(REQUESTS), D))["la"]
    for i in (1, 3):  # targets of several tokens
        states = answer_states(lm, REQUESTS[i], CONTEXTS, "mlp", 1, random(len(REQUESTS), D)[i], shift=1)
        assert abs(float(naive_alignment(states, phi[i], [2, 3])) - float(got[i])) > 1e-3


@pytest.mark.parametrize("on", ["all", "bare"])
@pytest.mark.parametrize("centred", [False, True])
def test_centre_and_rows(on: Any, centred: bool) -> None:
    lm, phi, layers = tiny_lm("llama"), anchors(), [2, 3]
    centre = random(N_LAYERS, D, seed=2) if centred else None
    delta = random(len(REQUESTS), D)
    got = objective_of(lm, term_of(phi, layers, centre, on=on))(delta)["la"]
    rows = CONTEXTS if on == "all" else CONTEXTS[:1]
    for i, request in enumerate(REQUESTS):
        want = naive_alignment(answer_states(lm, request, rows, "mlp", 1, delta[i]), phi[i], layers, centre)
        torch.testing.assert_close(got[i], want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("role", "layer"), SITES)
def test_an_edit_reaches_the_answer_above_its_layer(kind: str, role: Role, layer: int) -> None:
    """The gradient of each layer's alignment: zero up to the edited layer, not zero above it."""
    lm, phi = tiny_lm(kind), anchors()
    request = REQUESTS[1]  # the answer is not at the subject's last token
    delta = torch.zeros(D, requires_grad=True)
    states = answer_states(lm, request, CONTEXTS, role, layer, delta)
    for aligned in range(N_LAYERS):
        loss = naive_alignment(states, phi[1], [aligned])
        (naive,) = torch.autograd.grad(loss, delta, retain_graph=True)
        assert bool(naive.any()) == (aligned > layer)
        if aligned > layer or (role == "mlp" and aligned == layer):  # what is replayed
            lanes = torch.zeros(1, D, requires_grad=True)
            found = objective_of(lm, term_of(phi[1:2], [aligned]), role, layer, [request])(lanes)["la"]
            (ours,) = torch.autograd.grad(found.sum(), lanes)
            torch.testing.assert_close(ours[0], naive, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_edit_drawn_to_its_own_state_has_nothing_to_align(kind: str) -> None:
    lm = tiny_lm(kind)
    request, layers, zero = REQUESTS[1], [2, 3], torch.zeros(1, D)
    own = answer_states(lm, request, CONTEXTS[:1], "mlp", 1, zero[0])[0].detach()
    bare = objective_of(lm, term_of(own[None], layers, on="bare"), requests=[request])
    assert float(bare(zero)["la"]) == pytest.approx(0.0, abs=1e-6)
    assert float(objective_of(lm, term_of(own[None], layers), requests=[request])(zero)["la"]) > 1e-3
    assert float(bare(20 * random(1, D))["la"]) > 1e-3


def test_the_length_of_an_anchor_does_not_matter() -> None:
    lm, phi = tiny_lm("qwen2"), anchors()
    delta = random(len(REQUESTS), D)
    one, other = (objective_of(lm, term_of(x, [2, 3]))(delta)["la"] for x in (phi, 7.5 * phi))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    opposite = objective_of(lm, term_of(-phi, [2, 3]))(delta)["la"]
    torch.testing.assert_close(one + opposite, torch.full_like(one, 2.0))
    assert bool(((one >= 0) & (one <= 2)).all())
    own = answer_states(lm, REQUESTS[0], CONTEXTS[:1], "mlp", 1, delta[0])[0].detach()
    ends = [
        float(objective_of(lm, term_of(x[None], [2], on="bare"), requests=REQUESTS[:1])(delta[:1])["la"])
        for x in (own, -own)
    ]
    assert ends == pytest.approx([0.0, 2.0], abs=1e-5)


def test_it_does_not_depend_on_the_other_lanes() -> None:
    """Rows are padded on the right to the longest suffix; what is padded changes nothing."""
    lm, phi, delta = tiny_lm("gptj"), anchors(), random(len(REQUESTS), D)
    together = objective_of(lm, term_of(phi, [2, 3]))(delta)["la"]
    for i in range(len(REQUESTS)):
        alone = objective_of(lm, term_of(phi[i : i + 1], [2, 3]), requests=REQUESTS[i : i + 1])(delta[i : i + 1])
        torch.testing.assert_close(alone["la"][0], together[i], atol=1e-5, rtol=1e-5)


def test_it_is_given_by_lanes_that_are_left() -> None:
    lm, phi, delta = tiny_lm("llama"), anchors(), random(len(REQUESTS), D)
    term = term_of(phi, [2, 3])
    objective = objective_of(lm, term)
    whole = objective(delta)["la"]
    part = torch.tensor([1, 3])
    torch.testing.assert_close(objective.select(part)(delta[part])["la"], whole[part], atol=1e-5, rtol=1e-5)
    assert bool(term.last.isfinite().all())
    assert bool(term.first.isfinite().all())
    torch.testing.assert_close(1 - term.last.mean(1), whole)


# -- lambda -----------------------------------------------------------------------------------------------


def gradient_norms(lm: LM, phi: Tensor, layers: list[int]) -> list[tuple[float, float]]:
    """|gradient of NLL| and |gradient of L_LA| of each request at delta = 0, by full forward passes."""
    found = []
    for i, request in enumerate(REQUESTS):
        delta = torch.zeros(D, requires_grad=True)
        aligned = naive_alignment(answer_states(lm, request, CONTEXTS, "mlp", 1, delta), phi[i], layers)
        alone = torch.zeros(1, D, requires_grad=True)
        nll = ValueObjective(lm, [request], CONTEXTS, [Site("mlp", 1)], TERMS)(alone)["nll"]
        (of_nll,) = torch.autograd.grad(nll.sum(), alone)
        (of_la,) = torch.autograd.grad(aligned, delta)
        found.append((float(of_nll.norm()), float(of_la.norm())))
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_ratio_of_the_gradients_chooses_lambda(kind: str) -> None:
    """lambda = ratio |grad NLL| / |grad L_LA|, at most 100; chosen once."""
    lm, phi, layers = tiny_lm(kind), anchors(), [2, 3]
    term = term_of(phi, layers, weighting="grad_ratio", strength=0.1)
    objective = objective_of(lm, term)
    delta = torch.zeros(len(REQUESTS), D, requires_grad=True)
    losses = objective(delta)
    want = [0.1 * nll / la for nll, la in gradient_norms(lm, phi, layers)]
    assert term.weight is not None
    assert term.weight.tolist() == pytest.approx(want, rel=1e-3)
    assert max(want) < 100
    plain = objective_of(lm, term_of(phi, layers))(delta)["la"]
    torch.testing.assert_close(losses["la"], plain * term.weight, atol=1e-5, rtol=1e-4)
    (of_la,) = torch.autograd.grad(losses["la"].sum(), delta, retain_graph=True)
    (of_nll,) = torch.autograd.grad(losses["nll"].sum(), delta)
    torch.testing.assert_close(of_la.norm(dim=-1), 0.1 * of_nll.norm(dim=-1), atol=1e-5, rtol=1e-3)
    chosen = term.weight.clone()
    objective(random(len(REQUESTS), D).requires_grad_())
    assert torch.equal(term.weight, chosen)


def test_lambda_is_at_most_100() -> None:
    lm, phi, layers = tiny_lm("gpt2"), anchors(), [2, 3]
    ratios = sorted(nll / la for nll, la in gradient_norms(lm, phi, layers))
    strength = 100 / (ratios[1] * ratios[2]) ** 0.5  # two lanes above the bound, two below
    term = term_of(phi, layers, weighting="grad_ratio", strength=strength)
    objective_of(lm, term)(torch.zeros(len(REQUESTS), D, requires_grad=True))
    assert term.weight is not None
    want = [min(100.0, strength * ratio) for ratio in ratios]
    assert sorted(term.weight.tolist()) == pytest.approx(want, rel=1e-3)
    assert want.count(100.0) == 2


def test_warm_up() -> None:
    lm, phi = tiny_lm("gpt2"), anchors()
    delta = random(len(REQUESTS), D)
    full = objective_of(lm, term_of(phi, [2, 3]))(delta)["la"]
    objective = objective_of(lm, term_of(phi, [2, 3], strength=8.0, warmup=4))
    for share in (0, 0.25, 0.5, 0.75, 1, 1, 1):
        torch.testing.assert_close(objective(delta)["la"], 8 * share * full)


@pytest.mark.parametrize("weighting", ["fixed", "grad_ratio"])
def test_a_lane_without_an_anchor_is_not_aligned(weighting: Any) -> None:
    lm, phi = tiny_lm("gpt2"), anchors()
    phi[2] = float("nan")
    term = term_of(phi, [2, 3], random(N_LAYERS, D, seed=2), weighting=weighting)
    delta = random(len(REQUESTS), D).requires_grad_()
    loss = objective_of(lm, term)(delta)["la"]
    assert term.weight is not None
    assert [float(weight) > 0 for weight in term.weight] == [True, True, False, True]
    assert float(loss[2].detach()) == 0.0
    (gradient,) = torch.autograd.grad(loss.sum(), delta)
    assert [bool(row.any()) for row in gradient] == [True, True, False, True]
    assert bool(gradient.isfinite().all())


def test_a_larger_lambda_brings_the_states_nearer() -> None:
    lm, phi = tiny_lm("llama"), anchors()
    last = []
    for strength in (0.0, 3.0, 30.0):
        term = term_of(phi, [2, 3], strength=strength)
        lanes = ValueOptimization(objective_of(lm, term), stop_loss=0.0, clamp_norm_factor=4.0)
        optimise(lanes, lr=0.1, steps=20)
        last.append(1 - term.last.mean(1))
    assert bool((last[0] > last[1]).all())
    assert bool((last[1] > last[2]).all())
