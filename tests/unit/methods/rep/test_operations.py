"""What REP's steps and fits hand to the device does not grow with the lanes, and is what each lane does alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.speed.dispatched import Dispatched
from kedit.delta import waits
from kedit.methods.rep import AdapterConfig, AdapterTask, AdapterTrainer, closed_form, summary_rows
from kedit.methods.rep.adapter_phase import AdapterPhase
from kedit.methods.rep.draws import Draws, LaneSizes
from kedit.methods.rep.gate_fit import RIDGE, GateKeys, _fit_alone, fit_gates
from tests.unit.methods.rep.test_rep import D, draw, task

LOGISTIC = AdapterConfig(rank=4, positives=5, negatives=8, steps=6)
MLP = replace(LOGISTIC, gate="mlp", gate_width=0.3, dropout=0.2)


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "waiting_costs", lambda _: True)


def tasks(n: int) -> list[AdapterTask]:
    """Unlike ones, of unlike sizes."""
    return [replace(task(i, positives=5 + i % 4, negatives=40 + 3 * i), seed=i) for i in range(n)]


def step_of(phase: AdapterPhase, optimizer: torch.optim.Optimizer) -> tuple[Dispatched, Dispatched]:
    """A training step: what the losses take, and what Adam does, whose counters are on the host."""
    with Dispatched() as losses:
        optimizer.zero_grad()
        phase.loss().backward()
        phase.logs()
    with Dispatched() as adam:
        optimizer.step()
    return losses, adam


@pytest.mark.parametrize("config", [LOGISTIC, MLP], ids=["logistic", "mlp"])
def test_a_step_is_the_same_number_of_operations_for_any_number_of_lanes(config: AdapterConfig) -> None:
    found = {}
    for n in (1, 4, 16):
        phase = AdapterPhase(AdapterTrainer(tasks(n), config))
        optimizer = phase.optimizer()
        step_of(phase, optimizer)  # draws ahead, and makes Adam's state
        losses, adam = step_of(phase, optimizer)
        found[n] = losses.operations, adam.operations
        assert not losses.waits
    assert found[1] == found[4] == found[16]
    assert found[1][0].total() < 200
    assert found[1][1].total() < 40


def test_all_gates_are_fitted_in_as_many_operations_as_one(on_a_device: None) -> None:
    found = []
    for n in (1, 8):
        gates = [GateKeys(t.positives, t.negatives, t.hard_negatives) for t in [task(3)] * n]
        with Dispatched() as seen:
            fit_gates(gates)
        found.append(seen.n)
    per_gate = (found[1] - found[0]) / 7
    assert per_gate < 12, "what is copied and put together; no step of the fit"


def objective(keys: GateKeys, fit: dict[str, Tensor]) -> float:
    """The loss of a gate, one key at a time, in float64."""
    groups = [(keys.positives, 1.0, 0.5), (keys.negatives, -1.0, 0.25), (keys.hard_negatives, -1.0, 0.25)]
    outside = torch.cat([keys.negatives, keys.hard_negatives]).double()
    spread = (outside / outside.norm(dim=1, keepdim=True)).square().mean(0).rsqrt()
    total = RIDGE * float((fit["read"].double() / spread).square().sum())
    for some, sign, share in groups:
        for k in some.double():
            logit = k @ fit["read"].double() / k.norm() + fit["bias"].double()
            total += share / len(some) * float(torch.nn.functional.softplus(-sign * logit))
    return total


def test_gates_side_by_side_are_those_of_torch_s_optimiser(on_a_device: None) -> None:
    """The same steps in float64; both are where the loss is least, as far as 60 steps go."""
    gates = [
        GateKeys(draw(i, 6 + i, D).float(), draw(10 + i, 50 - 7 * i, D).float(), draw(20 + i, 3 * i, D).float())
        for i in range(3)
    ]
    found = fit_gates(gates)
    for gate, fit in zip(gates, found, strict=True):
        want = _fit_alone(GateKeys(gate.positives.double(), gate.negatives.double(), gate.hard_negatives.double()))
        torch.testing.assert_close(fit["read"].double(), want["read"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(fit["bias"].double(), want["bias"], atol=1e-4, rtol=1e-4)
        (alone,) = fit_gates([gate])
        assert all(torch.equal(alone[name], fit[name]) for name in fit), "whatever the lanes"
        if len(gate.hard_negatives):
            least = objective(gate, fit)
            for i in range(5):
                worse = {"read": fit["read"] + 0.01 * draw(i, D).float(), "bias": fit["bias"]}
                assert objective(gate, worse) > least


def test_closed_forms_on_a_device_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given = tasks(3)
    want = closed_form(given, AdapterConfig())
    monkeypatch.setattr(waits, "waiting_costs", lambda _: True)
    found = closed_form(given, AdapterConfig())
    for one, other in zip(found, want, strict=True):
        assert one.tensors().keys() == other.tensors().keys()
        for name, tensor in one.tensors().items():
            torch.testing.assert_close(tensor, other.tensors()[name], atol=2e-2, rtol=2e-2)
    rows = zip(summary_rows(found, given), summary_rows(want, given), strict=True)
    for row, other_row in rows:
        assert row == pytest.approx(other_row, abs=0.05)


def test_draws_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on the other lanes; they are those that were drawn in every step before."""
    sizes = [LaneSizes(5, 3, 9), LaneSizes(7, 4, 11)]

    def draws(lanes: list[int]) -> list[Any]:
        randoms = [torch.Generator().manual_seed(lane) for lane in lanes]
        made = Draws(randoms, [sizes[lane] for lane in lanes], torch.device("cpu"), 5, 4, 2, 0.3, 6)
        return [made.step(i) for i in range(7)]

    together = draws([0, 1])
    monkeypatch.setattr("kedit.methods.rep.draws.AHEAD", 1)
    one_by_one, alone = draws([0, 1]), draws([1])
    random, queue = torch.Generator().manual_seed(1), []
    for mine, other, single in zip(together, one_by_one, alone, strict=True):
        for name in vars(mine):
            assert torch.equal(getattr(mine, name), getattr(other, name))
        assert torch.equal(mine.kept[1:], single.kept)
        rows = []
        while len(rows) < 4:
            queue = queue or torch.randperm(7, generator=random).tolist()
            rows.append(queue.pop())
        assert mine.positives[1].tolist() == [5 + row for row in rows]
        assert torch.equal(mine.kept[1], torch.rand(5, 6, generator=random) < 0.7)
        assert mine.hard_negatives[1].tolist() == (3 + torch.randint(4, (2,), generator=random)).tolist()
        assert mine.negatives[1].tolist() == (9 + torch.randint(11, (2,), generator=random)).tolist()


def test_adapters_can_be_kept_one_by_one() -> None:
    """No adapter holds the memory of all lanes: a file would store it."""
    for config in (LOGISTIC, MLP):
        for pathway in AdapterTrainer(tasks(3), config).pathways():
            for tensor in pathway.tensors().values():
                assert tensor.untyped_storage().nbytes() <= 4 * (tensor.numel() + D)
