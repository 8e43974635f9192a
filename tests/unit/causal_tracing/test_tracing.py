"""Causal tracing against its definition: one restoration at a time, in full passes with hooks on plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.causal_tracing import Fact, Part, TraceConfig, facts_of, noise_level, trace, window_of
from kedit.causal_tracing.facts import noise_of
from kedit.causal_tracing.restoration import Span, spans_of
from kedit.errors import KeditError
from kedit.model.lm import LM
from kedit.request import EditRecord, EditRequest
from kedit.runtime.room import RESTORING
from tests.support.tiny_models import tiny_lm

REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome", "Paris"),
    EditRequest("2", "{}'s mother tongue is", "Danielle Darrieux", "English", "French"),  # no prefix with GPT-2
    EditRequest("3", "The Space Needle stands in the city of {}", "Seattle", "Rome", "Paris"),  # the subject is last
]
RECORDS = [EditRecord(request, ()) for request in REQUESTS]
# where the parts are in two architectures, written by hand
PLACES: dict[str, dict[Part, str]] = {
    "gpt2": {"state": "transformer.h.{}", "mlp": "transformer.h.{}.mlp", "attention": "transformer.h.{}.attn"},
    "llama": {"state": "model.layers.{}", "mlp": "model.layers.{}.mlp", "attention": "model.layers.{}.self_attn"},
}
CONFIG = TraceConfig(samples=3, window=2, seed=5)


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class Naive:
    """The definition of one fact: `restored(part, token, layer)`."""

    def __init__(self, lm: LM, fact: Fact, sigma: float, config: TraceConfig, kind: str) -> None:
        self.model, self.fact, self.places, self.config = lm.model, fact, PLACES[kind], config
        self.n_layers = lm.arch.n_layers
        self.noise = noise_of(fact, sigma, config.samples, config.seed, lm.d_model).to(lm.device)
        self.ids = torch.tensor([fact.ids], device=lm.device)
        self.kept: dict[tuple[Part, int], Tensor] = {}

        def keep(part: Part, layer: int) -> Callable[..., None]:
            def hook(_: Any, args: Any, output: Any) -> None:
                self.kept[part, layer] = first(output).clone()

            return hook

        hooks = [(self.places[p].format(i), keep(p, i)) for p in self.places for i in range(self.n_layers)]
        self.clean = float(self.run(self.ids, hooks)[0])
        self.corrupted = float(self.noisy([]).mean())

    def run(self, ids: Tensor, hooks: list[tuple[str, Callable[..., Any]]]) -> Tensor:
        handles = [self.model.get_submodule(path).register_forward_hook(hook) for path, hook in hooks]
        with torch.no_grad():
            logits = self.model(input_ids=ids, use_cache=False).logits[:, -1]
        for handle in handles:
            handle.remove()
        return logits.softmax(-1)[:, self.fact.answer]

    def noisy(self, hooks: list[tuple[str, Callable[..., Any]]]) -> Tensor:
        def corrupt(_: Any, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[:, self.fact.first : self.fact.last + 1] += self.noise
            return output

        embed = "transformer.wte" if "transformer" in self.places["state"] else "model.embed_tokens"
        return self.run(self.ids.repeat(len(self.noise), 1), [(embed, corrupt), *hooks])

    def restored(self, part: Part, token: int, layer: int) -> float:
        window = 1 if part == "state" else self.config.window or 1
        low = layer if part == "state" else max(0, layer - window // 2)
        high = layer + 1 if part == "state" else min(self.n_layers, layer + (window + 1) // 2)

        def restore(i: int) -> Callable[..., Any]:
            def hook(_: Any, args: Any, output: Any) -> Any:
                new = first(output).clone()
                new[:, token] = self.kept[part, i][0, token]
                return (new, *output[1:]) if isinstance(output, tuple) else new

            return hook

        return float(self.noisy([(self.places[part].format(i), restore(i)) for i in range(low, high)]).mean())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_it_is_the_definition(kind: str) -> None:
    lm = tiny_lm(kind, dtype=torch.float64, n_layers=3)
    facts = facts_of(lm, RECORDS)
    sigma = noise_level(lm, facts, 3.0)
    own = torch.cat([lm.arch.embed(lm.model).get_parameter("weight")[list(f.ids[f.first : f.last + 1])] for f in facts])
    assert sigma == pytest.approx(3 * float(own.std()), rel=1e-12)
    seen = trace(lm, facts, CONFIG)
    moved = 0.0
    for fact, found in zip(facts, seen, strict=True):
        naive = Naive(lm, fact, sigma, CONFIG, kind)
        assert found.clean == pytest.approx(naive.clean, abs=1e-12)
        assert found.corrupted == pytest.approx(naive.corrupted, abs=1e-12)
        assert found.tokens == range(fact.first, len(fact.ids))
        for part in PLACES[kind]:
            wanted = [[naive.restored(part, t, i) for i in range(lm.arch.n_layers)] for t in found.tokens]
            assert torch.allclose(found.restored[part], torch.tensor(wanted, dtype=torch.float64), atol=1e-10, rtol=0)
            moved = max(moved, float(found.effect(part).abs().max()))
        for part in PLACES[kind]:  # what stands before the subject is the same in both runs
            for token in range(fact.first):
                assert naive.restored(part, token, 1) == pytest.approx(naive.corrupted, abs=1e-12)
    assert moved > 1e-4


def test_the_subject_last_and_small_batches_are_parts_of_the_whole() -> None:
    lm = tiny_lm("llama", n_layers=3)
    facts = facts_of(lm, RECORDS)
    whole = trace(lm, facts, CONFIG)
    lm.room.allow(RESTORING, 7)
    small = TraceConfig(CONFIG.noise, CONFIG.samples, CONFIG.window, CONFIG.seed, batch_tokens=1)
    told: list[tuple[int, int]] = []
    some = trace(lm, facts, small, ["mlp"], True, lambda done, of: told.append((done, of)))
    for fact, one, all_ in zip(facts, some, whole, strict=True):
        assert list(one.restored) == ["mlp"]
        assert one.tokens == range(fact.last, fact.last + 1)
        torch.testing.assert_close(one.restored["mlp"][0], all_.restored["mlp"][fact.last - fact.first])
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_fact_has_its_own_noise() -> None:
    lm = tiny_lm("gpt2", n_layers=2)
    facts = facts_of(lm, RECORDS)
    alone = trace(lm, facts[1:2], CONFIG, ["state"], sigma=0.5)[0]
    beside = trace(lm, facts, CONFIG, ["state"], sigma=0.5)[1]
    assert torch.equal(alone.restored["state"], beside.restored["state"])
    other = trace(lm, facts[1:2], TraceConfig(samples=3, window=2, seed=6), ["state"], sigma=0.5)[0]
    assert other.corrupted != alone.corrupted


@pytest.mark.parametrize("kind", ["gptj", "gpt_neox", "mistral", "gemma2", "phi", "opt", "bloom"])
def test_restoring_all_that_is_corrupted_gives_the_clean_run(kind: str) -> None:
    """The last token's state of the top layer is all that the answer is read from; here in every family."""
    lm = tiny_lm(kind, n_layers=3)
    for found in trace(lm, facts_of(lm, RECORDS[:2]), TraceConfig(samples=2, window=2)):
        assert float(found.restored["state"][-1, -1]) == pytest.approx(found.clean, abs=1e-6)
        if found.fact.first + 1 == len(found.fact.ids):
            continue
        assert torch.allclose(found.restored["state"][:-1, -1], torch.tensor(found.corrupted).double(), atol=1e-5)


def test_windows() -> None:
    assert [window_of(TraceConfig(), n) for n in (1, 2, 12, 30, 48, 80)] == [1, 1, 2, 6, 10, 17]
    assert window_of(TraceConfig(window=9), 4) == 4
    assert spans_of("mlp", 4, 3) == [Span(0, 2), Span(0, 3), Span(1, 4), Span(2, 4)]
    assert spans_of("attention", 4, 2) == [Span(0, 1), Span(0, 2), Span(1, 3), Span(2, 4)]
    assert spans_of("state", 2, 9) == [Span(0, 1), Span(1, 2)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"noise": 0.0}, "trace.noise: 0.0 is not above 0"),
        ({"noise": float("nan")}, "trace.noise: nan is not a finite number"),
        ({"samples": 0}, "trace.samples: 0 is less than 1"),
        ({"window": 0}, "trace.window: 0 is less than 1"),
        ({"seed": -1}, "trace.seed"),
    ],
)
def test_settings_that_mean_nothing(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(KeditError, match=message):
        TraceConfig(**wrong)


def test_facts_that_cannot_be_traced() -> None:
    lm = tiny_lm("gpt2", n_layers=2)
    with pytest.raises(KeditError, match="record 9 names no subject, which kedit trace needs"):
        facts_of(lm, [EditRecord(EditRequest("9", "Who is it?", None, "a", "b"), ())])
    with pytest.raises(KeditError, match="record 9: it has no target_true"):
        facts_of(lm, [EditRecord(EditRequest("9", "{} is", "It", "a"), ())])
    with pytest.raises(KeditError, match=r"record 9: .* more than the 256 of the model's context"):
        facts_of(lm, [EditRecord(EditRequest("9", "so " * 400 + "{} is", "It", "a", "b"), ())])
    with pytest.raises(KeditError, match="no fact to trace"):
        trace(lm, [])


def test_embeddings_that_cannot_be_reached() -> None:
    lm = tiny_lm("gpt2", n_layers=2)
    facts = facts_of(lm, RECORDS[:1])
    embed: Any = lm.arch.embed(lm.model)
    inner = embed.forward
    embed.forward = lambda ids: inner(ids)[..., :1, :]
    with pytest.raises(KeditError, match="tiny-gpt2: its token embedding gives no vector for each token"):
        trace(lm, facts)
    with pytest.raises(KeditError, match=r"embeddings cannot be reached.*transformer\.wte gives .* 0 times"):
        trace(lm, facts, sigma=1.0)
