"""PAC with nodes in some layers alone, and its training on cached inputs of the lowest of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kedit.errors import KeditError
from kedit.methods import PAC
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.pac import ContrastConfig, LocalityConfig, TraceConfig, TrainConfig
from kedit.model.lm import LM
from tests.support.pac_runs import dense, run
from tests.support.tiny_models import tiny_lm

LAYERS = [2, 3]


def small(kind: str) -> LM:
    return tiny_lm(kind, n_layers=4, d_model=16, d_ff=40)


def made(cached: bool, regime: Any = "batch", **more: Any) -> PAC:
    train: dict[str, Any] = {"lr": 0.01, "passes": 3, "mini_batch": 2, "stop": False, "cached_inputs": cached}
    contrast = ContrastConfig(original=more.pop("original", "forced"))
    locality = LocalityConfig(more.pop("locality", 5.0), prompts=3, facts=8, others=2)
    trace = TraceConfig(nodes=4, contrast_nodes=2, layers=LAYERS)
    scope = more.pop("scope", "batch")
    module = PAC(scope, trace=trace, train=TrainConfig(**(train | more)), contrast=contrast, locality=locality)
    return module.configure(edit=EditConfig(regime))


@pytest.mark.parametrize(
    ("kind", "regime", "more"),
    [
        ("llama", "batch", {}),
        ("gpt2", "batch", {"original": "greedy", "bias": "code"}),
        ("gptj", "batch", {"objective": "joint", "locality": 0.0}),
        ("llama", "sequential", {"best": False, "rollback": 0.0}),
        ("llama", "sequential", {"scope": "edit", "rehearse": 2, "stop": True}),
    ],
)
def test_the_same_changes_as_by_whole_passes(kind: str, regime: Any, more: dict[str, Any]) -> None:
    size = 2 if regime == "sequential" else 5
    whole, cached = (run(made(yes, regime, **more), small(kind), batch_size=size) for yes in (False, True))
    for one, other in zip(whole, cached, strict=True):
        wanted, found = dense(one.deltas[0]), dense(other.deltas[0])
        assert wanted
        assert wanted.keys() == found.keys()
        assert all(int(path.split(".")[2]) in LAYERS for path in wanted)
        assert any(bool(change.any()) for change in wanted.values())
        for path, change in wanted.items():
            torch.testing.assert_close(found[path], change, atol=1e-5, rtol=1e-4)
        for mine, theirs in zip(one.outcomes, other.outcomes, strict=True):
            assert mine.info["steps"] == theirs.info["steps"]
            assert mine.info["answered"] == theirs.info["answered"]


def test_the_layers_below_run_once() -> None:
    """But for what the unedited model is asked, and for tracing, which are no training steps."""
    passes = {}
    for cached in (False, True):
        lm, calls = small("llama"), []
        lm.arch.module(lm.model, "mlp", 0).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        run(made(cached, passes=30), lm)
        passes[cached] = len(calls)
    assert passes[True] < 0.25 * passes[False]


@pytest.mark.parametrize("layers", [None, [], [0, 3]])
def test_nothing_is_constant_below_the_first_layer(layers: list[int] | None) -> None:
    with pytest.raises(KeditError, match=r"^model\.train\.cached_inputs: nodes may be in layer 0"):
        PAC(trace=TraceConfig(layers=layers), train=TrainConfig(cached_inputs=True))


@pytest.mark.parametrize(("layers", "message"), [([4], "there is no layer 4"), ([], "is empty"), ([1, 1], "twice")])
def test_layers_that_are_none(layers: list[int], message: str) -> None:
    trace = TraceConfig(nodes=4, contrast_nodes=2, layers=layers)
    with pytest.raises(KeditError, match=rf"^model\.trace\.layers.*{message}"):
        run(PAC(trace=trace), small("llama"))
