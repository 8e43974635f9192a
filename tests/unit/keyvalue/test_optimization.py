"""What a step of v* hands to the device and waits for, and lanes that leave."""

from __future__ import annotations

import pytest
import torch

from benchmarks.speed.dispatched import Dispatched
from kedit.forward.replay import Site
from kedit.keyvalue import NLL, KLDivergence, ValueObjective, ValueOptimization, WeightDecay
from kedit.request import EditRequest
from tests.support.tiny_models import tiny_lm

REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "{} is located in", "The Space Needle", "Tokyo"),
    EditRequest("3", "{} plays", "Lionel Messi", "basketball"),
]
CONTEXTS = ["{}", "The meeting was. {}", "Because of the rain, we stayed. {}"]


def made(n: int, stop_loss: float = 0.0) -> ValueOptimization:
    terms = (NLL(), KLDivergence(), WeightDecay(0.5))
    objective = ValueObjective(tiny_lm("llama"), REQUESTS[:n], CONTEXTS, [Site("mlp", 1)], terms)
    return ValueOptimization(objective, stop_loss=stop_loss, clamp_norm_factor=5.0)


def step(lanes: ValueOptimization, adam: torch.optim.Optimizer) -> None:
    adam.zero_grad()
    lanes.loss().backward()
    adam.step()
    lanes.after_step()
    assert not lanes.done


@pytest.mark.parametrize("n", [1, 3])
def test_a_step_waits_once_and_copies_no_prefix(n: int) -> None:
    lanes = made(n)
    adam = torch.optim.Adam([lanes.delta], lr=0.1)
    step(lanes, adam)
    with Dispatched() as found:
        step(lanes, adam)
    assert lanes.objective.lm.arch.n_layers - 1 == 3
    # in each of three layers the rotary embedding joins four halves; the vector, the logits that are read
    assert found.operations["aten.cat.default"] <= 3 * 2 + 3
    assert found.waits.total() <= 1  # Adam's own counter, beside the one list that the host reads


def test_a_lane_that_overflows_fails_and_leaves_alone() -> None:
    lanes = made(3)
    adam = torch.optim.Adam([lanes.delta], lr=0.1)
    step(lanes, adam)
    kept, others = lanes.delta[1].clone(), lanes.steps.clone()
    lanes.loss()
    with torch.no_grad():
        lanes.delta[1] = 3e38  # its norm is not finite
    lanes.after_step()
    lanes.loss()
    lanes.after_step()
    assert lanes.failed.tolist() == [False, True, False]
    assert torch.equal(lanes.delta[1], kept)
    assert (lanes.steps - others).tolist() == [2, 0, 2]
    assert lanes.running.tolist() == [True, False, True]
    assert not lanes.done


def test_all_lanes_that_overflow_at_once_are_done_with_the_next_loss() -> None:
    lanes = made(2)
    lanes.loss()
    with torch.no_grad():
        lanes.delta.fill_(3e38)
    lanes.after_step()
    lanes.loss().backward()
    assert lanes.done
    assert lanes.failed.tolist() == [True, True]
    assert not bool(lanes.delta.any())
    assert lanes.delta.grad is not None
    assert not bool(lanes.delta.grad.any())


def test_figures_are_means_over_the_lanes() -> None:
    lanes = made(3)
    lanes.loss()
    found = lanes.figures()
    assert found.keys() == {"loss", "lanes", "nll", "kl", "wd"}
    assert found["lanes"] == 3
    assert found["loss"] == float(lanes.total.mean())
    assert found["nll"] == float(lanes.terms["nll"].mean())
