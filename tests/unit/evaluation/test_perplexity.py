"""Perplexity against a plain loop over windows; lanes against edited weights; what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.errors import KeditError
from kedit.evaluation.perplexity import Windows, perplexities, windows_of
from kedit.model.architecture import weight
from kedit.model.lm import LM
from tests.support.tiny_models import TEXT, tiny_lm

LONG = " ".join([TEXT] * 20)


def naive(lm: LM, tokens: int, window: int) -> float:
    """Each window by itself, its tokens but the first predicted by the model's own forward."""
    front = int(lm.adds_bos)
    ids = lm.encode(LONG)
    start, body = ids[:front], ids[front : front + tokens]
    losses = []
    for at in range(0, len(body), window - front):
        piece = torch.tensor([[*start, *body[at : at + window - front]]])
        with torch.no_grad():
            logits = lm.model(piece).logits[0].float()
        losses += cross_entropy(logits[:-1], piece[0, 1:], reduction="none").tolist()
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize(("tokens", "window"), [(100, 25), (90, 40), (30, 64)])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_a_plain_loop(kind: str, tokens: int, window: int) -> None:
    lm = tiny_lm(kind)
    text = windows_of(lm, LONG, tokens, window)
    (found,) = perplexities(lm, text)
    assert found == pytest.approx(naive(lm, tokens, window), rel=1e-5)
    assert perplexities(lm, text, batch_tokens=10_000) == pytest.approx([found], rel=1e-5)


def test_a_text_is_not_cut_within_a_word() -> None:
    """Whether it is tokenised whole or only as far as needed, its first tokens are the same."""
    lm = tiny_lm("llama")
    ids = lm.encode(LONG)[1:] if lm.adds_bos else lm.encode(LONG)
    text = windows_of(lm, LONG, 120, 50)
    skip = int(lm.adds_bos)
    assert [token for piece in text.windows for token in piece[skip:]] == ids[:120]
    assert text.predicted == 120 - (0 if lm.adds_bos else len(text.windows))


def test_lanes_are_edited_models() -> None:
    lm = tiny_lm("llama")
    path = lm.arch.path("mlp_out", 1)
    d_out, d_in = weight(lm.model.get_submodule(path)).shape
    generator = torch.Generator().manual_seed(0)
    deltas = [
        Delta({path: Factors(torch.randn(d_out, 1, generator=generator), torch.randn(1, d_in, generator=generator))})
        for _ in range(2)
    ]
    text = windows_of(lm, LONG, 80, 30)
    lanes = [1, -1, 0, 1]
    found = perplexities(lm, text, lanes, BatchedDeltas(lm.model, deltas))
    for lane, value in zip(lanes, found, strict=True):
        with edited(lm.model, *([deltas[lane]] if lane >= 0 else [])):
            assert value == pytest.approx(perplexities(lm, text)[0], rel=1e-4)
    assert found[0] == found[3]
    assert len(set(found)) == 3


def test_a_broken_model_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kedit.evaluation.perplexity.read", lambda lm, spans, *_: [([1e4] * 3, ()) for _ in spans])
    assert perplexities(tiny_lm("gpt2"), Windows(((1, 2, 3, 4),), 1)) == [math.exp(100)]


@pytest.mark.parametrize(
    ("text", "window", "message"),
    [
        ("", 20, "notes.txt: it has too few tokens"),
        (LONG, 100_000, "perplexity.window: 100000 tokens are more than the"),
        (LONG, 1, "perplexity.window: 1 leaves no room"),
    ],
)
def test_what_is_refused(text: str, window: int, message: str) -> None:
    with pytest.raises(KeditError, match=message):
        windows_of(tiny_lm("gpt2"), text, 50, window, "notes.txt")
