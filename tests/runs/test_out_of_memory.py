"""Memory that runs out in the midst of a run: it goes on with less at once, to the bits of one asked for less."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kedit.covariance.collect import Pass
from kedit.errors import KeditError
from kedit.forward.greedy import greedy_ids
from kedit.forward.sampling import sample
from kedit.forward.teacher_forcing import Span, read
from kedit.keyvalue.contexts import ContextConfig
from kedit.methods import FT, REP, ROME, EditingModule
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.pac import labelled
from kedit.methods.pac.tracing.select import TraceConfig
from kedit.methods.pac.tracing.trace import trace
from kedit.methods.rep import AdapterConfig
from kedit.model.lm import LM
from kedit.request import EditRequest
from kedit.runtime import room
from tests.support.ridge import Ridge
from tests.support.runs_in_memory import edit_batches
from tests.support.short_memory import Where, short_of_memory
from tests.support.tiny_models import tiny_lm

CITIES = ("Rome", "Tokyo", "Seattle", "Madrid")
REQUESTS = [EditRequest(str(i), "The capital of {} is", f"{CITIES[i % 4]} {i}", CITIES[(i + 1) % 4]) for i in range(4)]
FEW: dict[str, Any] = {"v_num_grad_steps": 4, "contexts": ContextConfig(lengths=[[3, 1]])}
ROWS = 3  # of a lane: two contexts and the KL prompt


def rome() -> ROME:
    return ROME(layer=1, mom2_adjustment=False, **FEW)


def ridge() -> EditingModule:
    return Ridge(layers=[0, 1], **FEW)


def rep() -> EditingModule:
    return REP(rome(), adapter=AdapterConfig(steps=3, long_contexts=0))


def ft() -> EditingModule:
    return FT(layers=[1], steps=3)


def fresh() -> LM:
    return tiny_lm("llama", n_layers=3, d_model=16, d_ff=40)


def edits(method: EditingModule, lm: LM, lanes: int, regime: Any = "single") -> list[EditBatch]:
    method.configure(edit=EditConfig(regime, lanes))
    return edit_batches(method, lm, REQUESTS, 1 if regime == "single" else 4)


def bits(batches: list[EditBatch]) -> list[torch.Tensor]:
    deltas = [delta for batch in batches for delta in batch.deltas]
    assert all(delta is not None for delta in deltas), [o.error for b in batches for o in b.outcomes]
    return [tensor for delta in deltas if delta is not None for _, tensor in delta.numbers()]


def same(one: list[EditBatch], other: list[EditBatch]) -> bool:
    pairs = zip(bits(one), bits(other), strict=True)
    infos = [[outcome.info for batch in batches for outcome in batch.outcomes] for batches in (one, other)]
    return all(torch.equal(a, b) for a, b in pairs) and infos[0] == infos[1]


CASES = {"rome": (rome, 2 * ROWS), "ft": (ft, 2)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("after", [0, 2])
def test_lanes_are_halved(name: str, where: Where, after: int, caplog: pytest.LogCaptureFixture) -> None:
    """At the first step, and in the third one, when the optimiser has moved already."""
    make, most = CASES[name]
    wanted = edits(make(), fresh(), lanes=2)
    lm = fresh()
    with short_of_memory(lm, most, where, after=after) as sizes, caplog.at_level(logging.WARNING):
        found = edits(make(), lm, lanes=4)
    assert same(found, wanted)
    assert sum(size > most for size in sizes) == after + (where == "backward")
    said = [message for message in caplog.messages if "out of memory" in message]
    assert len(said) == 1
    assert "4 requests side by side; it goes on with 2 at most" in said[0]


def test_a_batch_of_many_layers() -> None:
    """The capture of what does not change runs out too: it is part of what is begun anew."""
    wanted = edits(ridge(), fresh(), 2, "batch")
    for graphs_only in (True, False):
        lm = fresh()
        most = 2 * ROWS + (not graphs_only)  # the capture asks one row more
        with short_of_memory(lm, most, graphs_only=graphs_only):
            found = edits(ridge(), lm, 4, "batch")
        assert lm.room.most(room.VALUES) == 2
        assert same(found, wanted)


def test_adapters_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    from kedit.methods.rep.train import AdapterTrainer

    wanted = edits(rep(), fresh(), 2)
    loss = AdapterTrainer.loss

    def short(self: AdapterTrainer) -> torch.Tensor:
        if len(self.tasks) > 2:
            raise torch.OutOfMemoryError("a test")
        return loss(self)

    monkeypatch.setattr(AdapterTrainer, "loss", short)
    lm = fresh()
    found = edits(rep(), lm, 4)
    assert lm.room.most(room.ADAPTERS) == 2
    assert lm.room.most(room.VALUES) is None
    pairs = list(zip(bits(found), bits(wanted), strict=True))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)  # v* had four lanes here, two there


def test_one_request_that_does_not_fit() -> None:
    lm = fresh()
    with (
        short_of_memory(lm, 1),
        pytest.raises(KeditError, match=r"out of memory: v\* does not fit even with 1 request"),
    ):
        edits(rome(), lm, 4)


def test_scoring_and_generation() -> None:
    lm = fresh()
    rows = [tuple(range(5 * n, 6 * n)) for n in (9, 8, 7, 6, 4, 3)]
    spans = [Span(-1, ids, ids[-1:]) for ids in rows]
    wanted = read(lm, spans, batch_tokens=18), greedy_ids(lm, rows, 4), sample(lm, rows, 4, seed=1, batch_size=1)
    with short_of_memory(lm, 20, tokens=True, graphs_only=False) as sizes:
        found = read(lm, spans), greedy_ids(lm, rows, 4), sample(lm, [*rows], 4, seed=1, mixed=True)
    assert max(sizes) <= 20
    for (one, top), (other, same_top) in zip(found[0], wanted[0], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
        assert top == same_top
    assert found[1] == wanted[1]
    assert found[2] == wanted[2]
    assert lm.room.most(room.SCORING) == 13  # 54 padded tokens were too many, and 27
    assert lm.room.most(room.GENERATION) is not None


@pytest.mark.parametrize("most", [2, 3])
def test_statistics_count_every_token_once(most: int) -> None:
    """Lower layers have added the keys of a part when a higher one runs out of memory."""
    lm = fresh()
    ids = torch.randint(5, 500, (7, 6), generator=torch.Generator().manual_seed(0))
    sums = {}
    for short in (False, True):
        state = Pass(lm, [0, 1, 2], torch.float64)
        if short:
            with short_of_memory(lm, most, layer=1, graphs_only=False):
                state.advance(ids)
        else:
            state.advance(ids)
        sums[short] = state.moments
    for layer in (0, 1, 2):
        assert sums[True][layer].count == sums[False][layer].count == 42
        torch.testing.assert_close(sums[True][layer].mean(), sums[False][layer].mean(), rtol=1e-4, atol=1e-6)


def test_tracing_in_smaller_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    from kedit.methods.pac.tracing import trace as module

    lm = fresh()
    texts = [module_text(lm, r) for r in REQUESTS]
    batch = labelled(lm, texts, True)
    config = TraceConfig(memory=40.0)
    wanted = trace(lm, [batch], config)
    stream: Callable[..., Any] = module.stream

    def short(*args: Any) -> Any:
        if args[-1] > most:
            raise torch.OutOfMemoryError("a test")
        return stream(*args)

    most = 15 * sum(map(module._bytes, wanted))
    monkeypatch.setattr(module, "stream", short)
    found = trace(lm, [batch], config)
    assert all(torch.equal(found[site], wanted[site]) for site in wanted)
    assert lm.room.most(room.TRACING) is not None


def module_text(lm: LM, request: EditRequest) -> Any:
    from kedit.methods.pac.requests import requests_of
    from kedit.request import EditRecord

    (one,) = requests_of(lm, [EditRecord(request, ())], "model")
    return one.text
