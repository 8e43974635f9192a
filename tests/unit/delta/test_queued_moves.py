"""What a bank and lanes of adapters hand to a device that works through a queue, and how often its host waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.speed.dispatched import Dispatched
from kedit.delta import pathway_moves, waits
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.gate_state import GateContext
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.pathway import Pathway, PathwayRouter
from kedit.delta.pathways import Pathways
from kedit.model.architecture import weight
from tests.support.tiny_models import tiny_lm
from tests.unit.delta.test_pathway import D, made, naive


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "waiting_costs", lambda _: True)


def pathways(n: int, d: int = D, again: float | None = 0.5) -> list[Pathway]:
    hysteresis = None if again is None else torch.tensor(again)
    return [replace(made(d, seed=i), hysteresis=hysteresis) for i in range(n)]


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("again", [None, 0.5])
def test_a_bank_is_few_operations_and_waits_for_none(again: float | None) -> None:
    keys, found = torch.randn(2, 30, D), {}
    for n in (1, 16, 256):
        bank = PathwayRouter(pathways(n, again=again))
        bank(keys)  # puts the adapters side by side
        with Dispatched() as seen:
            moved = bank(keys, GateContext())
        assert not seen.waits
        assert not torch.equal(moved, keys)
        found[n] = seen.n
    assert found[16] == found[256]
    assert found[1] <= 10 + 9 * (again is not None)
    assert found[256] <= 15 + 9 * (again is not None)


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_bank_waits_once(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """For which gate is open at which key; the keys are moved as in a small bank."""
    keys, bank = torch.randn(60, D, generator=torch.Generator().manual_seed(3)).to(dtype), pathways(40, again=None)
    small = PathwayRouter(bank)(keys)
    looks: list[torch.Tensor] = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: looks.append(self) or tolist(self))
    for name, limit in (("WORTH", 0), ("HELD", 0)):
        monkeypatch.setattr(pathway_moves, name, limit)
        looks.clear()
        with Dispatched() as seen:
            large = PathwayRouter(bank)(keys)
        assert not seen.waits
        assert [tuple(look.shape) for look in looks] == [(60,)]
        torch.testing.assert_close(large, small)
        assert torch.equal((large != keys).any(1), (small != keys).any(1))
    want, chosen = naive(bank, keys.float())
    assert len(set(chosen)) > 5
    torch.testing.assert_close(small, want.to(dtype))
    shut = [replace(p, bias=torch.tensor(-1e6)) for p in bank]
    assert torch.equal(PathwayRouter(shut)(keys), keys)


@pytest.mark.usefixtures("on_a_device")
def test_adapters_of_unlike_ranks_stand_side_by_side() -> None:
    wide = made(gate="none", seed=7)
    wide = replace(made(seed=8), down=torch.cat([wide.down, wide.down]), up=torch.cat([wide.up, wide.up], 1))
    bank, keys = [made(seed=1), wide, made(seed=2)], torch.randn(80, D, generator=torch.Generator().manual_seed(5))
    want, chosen = naive(bank, keys)
    assert {0, 1, 2} <= set(chosen)
    torch.testing.assert_close(PathwayRouter(bank)(keys), want, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize("kind", ["adapters", "factors"])
def test_lanes_are_the_same_number_of_operations_however_many(kind: str) -> None:
    lm = tiny_lm("llama")
    path = lm.arch.path("mlp_out", 1)
    o, d = weight(lm.arch.module(lm.model, "mlp_out", 1)).shape
    found = []
    for n in (1, 4, 16):
        own = [Pathways((p,)) if kind == "adapters" else Factors(torch.randn(o, 1), torch.randn(1, d))
               for p in pathways(n, d)]  # fmt: skip
        bank = BatchedDeltas(lm.model, [Delta({path: change}) for change in own])
        ids = torch.full((n, 6), 5)
        with torch.no_grad(), bank.rows(torch.arange(n)), Dispatched() as seen:
            lm.model(ids, use_cache=False)
        with torch.no_grad(), Dispatched() as plain:
            lm.model(ids, use_cache=False)
        assert seen.waits == plain.waits
        found.append(seen.n - plain.n)
    assert found[0] == found[1] == found[2] <= 20
