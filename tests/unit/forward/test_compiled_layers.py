"""Compiled layers against the layers as they are. Dynamo traces; the graphs are run as they are, without a compiler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from kedit.forward.replay import Replay, Row, Site
from tests.support.tiny_models import tiny_lm

# seven rows, later five, of three tokens after six: sizes that are equal would be taken for one size
ROWS = [Row((5 + i, 6, 7, 8, 9, 10, 11, 12, 13)[i % 2 :], 6 - i % 2) for i in range(7)]
SITE = Site("mlp", 1)


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **kwargs: compile_(module, backend="eager", **kwargs))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def run(replay: Replay, d_model: int) -> tuple[Tensor, Tensor]:
    vectors = torch.randn(replay.n_rows, d_model, generator=torch.Generator().manual_seed(0)).requires_grad_()
    final = replay.run({SITE: vectors})
    (gradient,) = torch.autograd.grad(final[:, 1].square().sum(), vectors)
    return final.detach(), gradient


def test_layers_share_graphs_that_give_the_same_numbers() -> None:
    lm = tiny_lm("llama")
    plain, compiled = Replay(lm, ROWS, 1), Replay(lm, ROWS, 1, compiled=True)
    kept = torch.tensor([0, 2, 3, 5, 6])
    for one, other in ((plain, compiled), (plain.select(kept), compiled.select(kept))):
        for found, wanted in zip(run(other, lm.d_model), run(one, lm.d_model), strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    # not one for each of two layers at each of two numbers of rows; the site's own layer runs as it is
    assert 1 <= counters["stats"]["unique_graphs"] <= 2


def test_a_layer_that_is_listened_to_runs_as_it_is() -> None:
    lm = tiny_lm("llama")
    compiled = Replay(lm, ROWS, 1, compiled=True)
    plain = Replay(lm, ROWS, 1)
    before, _ = run(compiled, lm.d_model)

    def double(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        return 2 * output

    handle = lm.arch.module(lm.model, "mlp_out", 2).register_forward_hook(double)
    try:
        found, _ = run(compiled, lm.d_model)
        wanted, _ = run(plain, lm.d_model)
    finally:
        handle.remove()
    assert not torch.allclose(found, before)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    assert torch.equal(run(compiled, lm.d_model)[0], before)
