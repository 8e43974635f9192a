"""Aligned lanes in the loop of v*: when they stop, that they do not see each other, and the whole loop done naively."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.forward.replay import Site
from kedit.keyvalue import NLL, KLDivergence, ValueObjective, ValueOptimization, WeightDecay, optimise
from kedit.methods.steam.alignment import Alignment
from kedit.model.lm import LM
from kedit.model.tokenization import encode_subject
from tests.support.steam_cases import CONTEXTS, REQUESTS, answer_states, naive_alignment
from tests.support.tiny_models import tiny_lm

N_LAYERS, D, LAYERS = 4, 32, [2, 3]
TERMS = (NLL(), KLDivergence(), WeightDecay(0.5))
STEPS = 30


def anchors(n: int = len(REQUESTS)) -> Tensor:
    return torch.randn(n, N_LAYERS, D, generator=torch.Generator().manual_seed(1))


def lanes_of(
    lm: LM, phi: Tensor | None, stop_loss: float, which: list[int] | None = None, **more: Any
) -> tuple[ValueOptimization, Alignment | None]:
    """Lanes of some requests, aligned or (phi None) the editor's own."""
    which = list(range(len(REQUESTS))) if which is None else which
    more = {"strength": 3.0} | more
    term = None if phi is None else Alignment(phi[which][:, LAYERS], LAYERS, **more)
    terms = TERMS if term is None else (*TERMS, term)
    objective = ValueObjective(lm, [REQUESTS[i] for i in which], CONTEXTS, [Site("mlp", 1)], terms)
    return ValueOptimization(objective, stop_loss, clamp_norm_factor=5.0), term


def trace(lanes: ValueOptimization, lr: float = 0.1, steps: int = STEPS) -> list[dict[str, Tensor]]:
    """Every evaluation's terms, driven as `optimise` drives; lanes that have finished are NaN."""
    adam, found = torch.optim.Adam([lanes.delta], lr=lr), []
    for _ in range(steps):
        adam.zero_grad()
        lanes.terms.clear()
        loss = lanes.loss()
        found.append({name: value.clone() for name, value in lanes.terms.items()})
        if lanes.done:
            break
        loss.backward()
        adam.step()
        lanes.after_step()
    return found


def middle_loss(lm: LM, steps: int = STEPS) -> float:
    """A bound that two of the four lanes reach without alignment."""
    lanes, _ = lanes_of(lm, None, 0.0)
    optimise(lanes, lr=0.1, steps=steps)
    reached = lanes.total.sort().values
    return float(reached[1] + reached[2]) / 2


def loss_at(lm: LM, i: int, step: int) -> float:
    """The loss of a request at one evaluation of the editor by itself."""
    lanes, _ = lanes_of(lm, None, 0.0, [i])
    row = trace(lanes, steps=step + 1)[step]
    return float(sum(row.values()))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_lanes_without_anchors_stop_where_the_editor_stops(kind: str) -> None:
    """They take the host's steps to the host's bits, whatever the lane beside them does."""
    lm = tiny_lm(kind)
    stop = middle_loss(lm)
    host, _ = lanes_of(lm, None, stop)
    optimise(host, lr=0.1, steps=STEPS)
    phi = anchors()
    phi[:] = float("nan")
    bare, _ = lanes_of(lm, phi, stop)
    optimise(bare, lr=0.1, steps=STEPS)
    assert torch.equal(bare.v_star, host.v_star)
    assert len(set(host.steps.tolist())) > 1
    slowest = int(host.steps.argmax())
    phi[slowest] = anchors()[slowest]
    mixed, _ = lanes_of(lm, phi, stop)
    optimise(mixed, lr=0.1, steps=STEPS)
    others = [i for i in range(len(REQUESTS)) if i != slowest]
    assert mixed.steps[others].tolist() == host.steps[others].tolist()
    torch.testing.assert_close(mixed.v_star[others], host.v_star[others], atol=1e-5, rtol=1e-5)
    assert float((mixed.v_star[slowest] - host.v_star[slowest]).norm()) > 1e-2


@pytest.mark.parametrize(("patience", "tolerance"), [(2, 1e-3), (5, 1e-3), (3, 3e-3), (0, 1e-3)])
def test_an_aligned_lane_goes_on_until_its_alignment_has_settled(patience: int, tolerance: float) -> None:
    """It stops at the first evaluation with the editor's loss below the bound and `patience` without gain."""
    lm = tiny_lm("gpt2")
    done, longer = [], []
    for i in range(len(REQUESTS)):
        stop = loss_at(lm, i, 6)
        lanes, _ = lanes_of(lm, anchors(), stop, [i], patience=patience, tolerance=tolerance, strength=1.0)
        best, age, stops, below = float("inf"), 0, [], []
        for row in trace(lanes, steps=60):
            la, counted = float(row["la"]), float(sum(row[name] for name in ("nll", "kl", "wd")))
            best, age = (la, 0) if la < best - tolerance else (best, age + 1)
            below.append(counted < stop)
            stops.append(below[-1] and age >= patience)
        assert lanes.done == stops[-1]
        assert not any(stops[:-1])
        done.append(lanes.done)
        longer.append(any(below[:-1]))
    assert any(done)
    assert any(longer) == (patience > 0), "no lane went on for its alignment's sake"


def test_the_alignment_is_no_part_of_the_loss_that_is_bounded() -> None:
    """With a lambda so large that the total never falls below the bound, lanes stop all the same."""
    lm = tiny_lm("gpt2")
    stop = loss_at(lm, 0, 3)
    lanes, _ = lanes_of(lm, anchors(), stop, [0], strength=30.0, patience=2, tolerance=100.0)
    optimise(lanes, lr=0.1, steps=60)
    assert 2 <= int(lanes.steps[0]) < 59
    assert float(lanes.total[0]) > 2 * stop


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama", "qwen2"])
@pytest.mark.parametrize("weighting", ["fixed", "grad_ratio"])
def test_lanes_equal_one_at_a_time(kind: str, weighting: Any) -> None:
    """Also after some have converged and left the batch."""
    lm, phi = tiny_lm(kind), anchors()
    stop = middle_loss(lm, 15)
    more: dict[str, Any] = {"weighting": weighting, "strength": 0.3, "patience": 1, "tolerance": 1e-2}
    together, of_all = lanes_of(lm, phi, stop, **more)
    optimise(together, lr=0.1, steps=15)
    assert of_all is not None
    assert len(set(together.steps.tolist())) > 1, "no lane left the batch before another"
    for i in range(len(REQUESTS)):
        alone, term = lanes_of(lm, phi, stop, [i], **more)
        optimise(alone, lr=0.1, steps=15)
        assert term is not None
        assert term.weight is not None
        assert of_all.weight is not None
        assert int(alone.steps[0]) == int(together.steps[i])
        scale = float(alone.v_star.abs().max())
        torch.testing.assert_close(alone.v_star[0], together.v_star[i], atol=1e-5 * scale, rtol=1e-5)
        torch.testing.assert_close(term.weight[0], of_all.weight[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(term.first[0], of_all.first[i], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(term.last[0], of_all.last[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_step_equals_full_forward_passes(kind: str) -> None:
    """The whole optimisation again, with one full forward pass for every prompt, and no term but NLL and L_LA."""
    lm, request, phi, strength = tiny_lm(kind), REQUESTS[1], anchors()[1:2], 5.0
    term = Alignment(phi[:, LAYERS], LAYERS, strength=strength)
    objective = ValueObjective(lm, [request], CONTEXTS, [Site("mlp", 1)], (NLL(), term))
    lanes = ValueOptimization(objective, stop_loss=0.0, clamp_norm_factor=5.0)
    rows = trace(lanes, steps=5)
    delta = torch.zeros(D, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=0.1)
    for row in rows:
        adam.zero_grad()
        la = naive_alignment(answer_states(lm, request, CONTEXTS, "mlp", 1, delta), phi[0], LAYERS)
        nll = torch.zeros(())
        for context in CONTEXTS:
            t = encode_subject(lm, request.prompt, request.named(), request.target_new, context)
            for k, token in enumerate(t.target):
                state = answer_states(lm, request, [context], "mlp", 1, delta, shift=k)[0, -1]
                logits = lm.arch.logits(lm.model, state[None])[0].log_softmax(-1)
                nll = nll - logits[token] / len(t.target) / len(CONTEXTS)
        torch.testing.assert_close(row["la"][0], strength * la, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(row["nll"][0], nll, atol=1e-4, rtol=1e-4)
        (nll + strength * la).backward()
        adam.step()
    torch.testing.assert_close(lanes.delta[0].detach(), delta.detach(), atol=1e-4, rtol=1e-3)
