"""Grouped replay against one replay of all rows, and the choice of the groups against trying all of them."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest
import torch
from torch import Tensor

from kedit.forward import replay_groups
from kedit.forward.replay import Replay, Row, Site
from kedit.forward.replay_groups import GroupedReplay, group_bounds, run_cost
from kedit.keyvalue import NLL, KLDivergence, ValueObjective, ValueOptimization, WeightDecay, optimise
from kedit.request import EditRequest
from tests.support.tiny_models import tiny_lm

SITE, OUTPUT = Site("mlp", 1), Site("output", 2)
STARTS = ((9, 4), (7, 0), (5, 3), (8, 6), (4, 3), (9, 1))  # tokens of a row, and its first suffix token
TERMS = (NLL(), KLDivergence(), WeightDecay(0.5))
REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "The mother tongue of {}, who lives in Spain, is", "Danielle Darrieux", "English tea"),
    EditRequest("3", "{} is located in", "The Space Needle", "Tokyo"),
    EditRequest("4", "{}", "Windows", "developed by Microsoft"),
]


def made_rows() -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    return [Row(tuple(torch.randint(3, 500, (n,), generator=generator).tolist()), start) for n, start in STARTS]


def test_the_groups_are_those_that_cost_least() -> None:
    random = Random(0)
    for _ in range(40):
        lengths = [random.randint(1, 7) for _ in range(random.randint(1, 30))]
        cost = random.choice([0.5, 3.0, 10.0, 50.0])

        def spent(bounds: list[int], lengths: list[int] = lengths, cost: float = cost) -> float:
            return sum(min(b for b in bounds if b >= n) for n in lengths) + cost * len(bounds)

        found = group_bounds(lengths, cost)
        others = sorted(set(lengths))[:-1]
        ways = [[*some, max(lengths)] for n in range(len(others) + 1) for some in combinations(others, n)]
        assert found == sorted(found)
        assert set(found) <= set(lengths)
        assert spent(found) == min(map(spent, ways))


def test_few_rows_are_one_group_and_many_are_not() -> None:
    cost = run_cost(tiny_lm("llama"))
    assert len(group_bounds([8, 1] * 2, cost)) == 1
    assert len(group_bounds([8, 1] * 10_000, cost)) == 2


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "opt"])
def test_groups_give_what_one_replay_gives(kind: str) -> None:
    lm, rows = tiny_lm(kind), made_rows()
    one, grouped = Replay(lm, rows, 1), GroupedReplay(lm, rows, 1, cost=0)
    assert len(grouped.groups) == len({len(row.suffix) for row in rows}) > 2
    for site in (SITE, OUTPUT):
        torch.testing.assert_close(grouped.first_output(site), one.first_output(site), atol=1e-5, rtol=1e-5)
    for found, wanted in zip(grouped.first_keys(), one.first_keys(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    kept = torch.tensor([0, 2, 3, 5])  # the groups of rows 1 and 4 are gone
    compare(one, grouped, [len(row.suffix) for row in rows], lm.d_model)
    compare(one.select(kept), grouped.select(kept), [len(rows[i].suffix) for i in kept.tolist()], lm.d_model)


def compare(one: Replay, grouped: GroupedReplay, lengths: list[int], d_model: int) -> None:
    """States at the last tokens, and after a layer at the first ones, and gradients of both."""
    row = torch.tensor([*range(len(lengths))][::-1])  # not in the order of the groups
    last = torch.tensor(lengths)[row] - 1
    first = torch.zeros_like(last)
    vectors = torch.randn(2, len(lengths), d_model, generator=torch.Generator().manual_seed(1))

    def both(states: Tensor, hidden: Tensor, added: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight = torch.linspace(0, 1, states.numel()).view_as(states)
        (gradient,) = torch.autograd.grad((weight * (states + hidden)).sum(), added)
        return states, hidden, gradient

    seen: dict[int, Tensor] = {}
    added = vectors.clone().requires_grad_()
    final = one.run({SITE: added[0], OUTPUT: added[1]}, lambda layer, hidden: seen.update({layer: hidden}))
    wanted = both(final[row, last], seen[2][row, first], added)
    added = vectors.clone().requires_grad_()
    add = {SITE: added[0], OUTPUT: added[1]}
    states, hidden = grouped.run(add, grouped.places(row, last), {2: grouped.places(row, first)})
    for got, want in zip(both(states, hidden[2], added), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_v_star_in_groups_is_that_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where lanes leave at different steps."""
    lm, contexts = tiny_lm("llama"), ["{}", "The meeting was. {}"]

    def run(cost: float, stop_loss: float) -> ValueOptimization:
        monkeypatch.setattr(replay_groups, "run_cost", lambda lm: cost)
        objective = ValueObjective(lm, REQUESTS, contexts, [Site("mlp", 1)], TERMS)
        assert (len(objective.replay.groups) > 1) == (cost == 0)
        lanes = ValueOptimization(objective, stop_loss=stop_loss, clamp_norm_factor=5.0)
        optimise(lanes, lr=0.2, steps=10)
        return lanes

    reached = run(1e9, 0.0).total.sort().values
    stop_loss = float(reached[1] + reached[2]) / 2
    one, grouped = run(1e9, stop_loss), run(0, stop_loss)
    assert len(set(one.steps.tolist())) > 1
    assert grouped.steps.tolist() == one.steps.tolist()
    torch.testing.assert_close(grouped.v_star, one.v_star, atol=1e-4, rtol=1e-4)
    for found, wanted in zip(grouped.objective.keys_and_values(), one.objective.keys_and_values(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
