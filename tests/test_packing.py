"""Texts packed into one row: the logits and gradients that each has by itself, in every family of models."""

from __future__ import annotations

import pytest
import torch

from kedit import packing
from kedit.packing import logits_of, packs
from tests.tiny import KINDS, tiny_lm

TEXTS = ["The capital of France is", "Berlin", "Lionel Messi plays football for the", "He was born in the city of"]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_texts_are_as_alone(kind: str) -> None:
    lm = tiny_lm(kind)
    texts = [tuple(lm.encode(text)) for text in TEXTS]
    places = [(row, col) for row, text in enumerate(texts) for col in range(len(text))]
    rows, cols = torch.tensor(places[::-1]).T
    assert packs(lm)
    weight = next(p for name, p in lm.model.named_parameters() if p.dim() == 2 and ("mlp" in name or "fc1" in name))
    weight.requires_grad_(True)
    found = logits_of(lm, texts, rows, cols)
    alone = [lm.model(input_ids=torch.tensor([text]), use_cache=False).logits[0] for text in texts]
    wanted = torch.stack([alone[row][col] for row, col in places[::-1]])
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4)
    one = torch.autograd.grad(found.square().mean(), weight)[0]
    other = torch.autograd.grad(wanted.square().mean(), weight)[0]
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_there_is_one_row_and_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    texts = [tuple(lm.encode(text)) for text in TEXTS]
    assert packs(lm)
    shapes = []
    lm.model.register_forward_pre_hook(lambda _, __, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True)
    logits_of(lm, texts, torch.tensor([0]), torch.tensor([0]))
    assert shapes == [(1, sum(map(len, texts)))]


@pytest.mark.parametrize("reason", ["disagrees", "window", "attention"])
def test_a_model_that_cannot_is_padded(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes out is the same; a window shorter than a text, or attention that takes no mask of ours, pad too."""
    lm = tiny_lm("mistral", sliding_window=4) if reason == "window" else tiny_lm("llama")
    if reason == "attention":
        lm.model.config._attn_implementation = "flash_attention_2"
        assert not packs(lm)
        lm.model.config._attn_implementation = "sdpa"
    elif reason == "disagrees":
        real = packing._packed
        with monkeypatch.context() as patch:
            patch.setattr(packing, "_packed", lambda *args: real(*args) + 1)
            assert not packs(lm)
    monkeypatch.setattr(packing, "_packed", lambda *_: pytest.fail("packed"))
    if reason == "window":
        monkeypatch.setattr(packing, "packs", lambda _: True)
    texts = [tuple(lm.encode(text)) for text in TEXTS]
    found = logits_of(lm, texts, torch.tensor([3, 0]), torch.tensor([5, 1]))
    for logits, (row, col) in zip(found, [(3, 5), (0, 1)], strict=True):
        wanted = lm.model(input_ids=torch.tensor([texts[row]]), use_cache=False).logits[0, col]
        torch.testing.assert_close(logits, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["bloom", "falcon"])
def test_a_model_that_crashes_when_asked_cannot(kind: str) -> None:
    """ALiBi is built from a mask of two axes; the texts are padded then, and right."""
    lm = tiny_lm(kind, "bpe", **({"alibi": True, "bias": True} if kind == "falcon" else {}))
    assert not packs(lm)
    texts = [tuple(lm.encode(text)) for text in TEXTS]
    found = logits_of(lm, texts, torch.tensor([3, 0]), torch.tensor([5, 1]))
    for logits, (row, col) in zip(found, [(3, 5), (0, 1)], strict=True):
        wanted = lm.model(input_ids=torch.tensor([texts[row]]), use_cache=False).logits[0, col]
        torch.testing.assert_close(logits, wanted, rtol=0, atol=2e-4)
