"""Texts packed into one row: the logits and gradients that each has by itself, in every family of models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Gemma3Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from kedit.forward import packing
from kedit.forward.binding import wrap_lm
from kedit.forward.packing import logits_of, packs
from kedit.keyvalue import published
from tests.support.device import DEVICE
from tests.support.tiny_models import KINDS, tiny_lm, tiny_tokenizer

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


def test_keys_of_a_config_within_a_config() -> None:
    """A vision-language model keeps what is said of its decoder in a config of its own."""
    sizes: dict[str, Any] = {
        "vocab_size": 600,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 80,
        "max_position_embeddings": 128,
    }
    vision: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "image_size": 28, "patch_size": 14}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    seen = Gemma3Config(text_config={**sizes, "head_dim": 8, "sliding_window": 8}, vision_config=vision)
    lm = wrap_lm(AutoModelForCausalLM.from_config(seen).to(DEVICE), tiny_tokenizer("sentencepiece"), "gemma3")
    assert not hasattr(lm.model.config, "sliding_window")
    assert packing._window(lm) == 8
    llava = LlavaConfig(text_config=LlamaConfig(**sizes), vision_config=CLIPVisionConfig(**vision))
    lm = wrap_lm(LlavaForConditionalGeneration(llava), tiny_tokenizer("sentencepiece"), "llava")
    assert published.shape_of(lm) == ("llama", 4, 32, 80)  # as the Llama that it is
    assert lm.context_length == 128


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
