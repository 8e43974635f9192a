"""Texts that are read on: the cache with room, prepared masks and rows that leave, against whole texts read anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from benchmarks.speed.dispatched import Dispatched
from kedit.delta.gate_state import choose_rows
from kedit.forward.decoding import MOST_TOKENS, Decoding, bounded_tokens, default_batch_tokens, text_cache, token_bytes
from kedit.forward.greedy import greedy_ids
from kedit.forward.logits import frozen
from kedit.model.lm import LM
from tests.support.tiny_models import tiny_lm

TEXTS = ("Berlin", "The capital of France is", "I think", "In the north of Spain it rains more often than")
FAMILIES = ["gpt2", "gptj", "gpt_neox", "llama", "mistral", "opt", "qwen2", "gemma2", "phi3", "modernbert-decoder"]


def rows_of(lm: LM, texts: Sequence[str] = TEXTS) -> list[tuple[int, ...]]:
    return [tuple(lm.encode(text)) for text in texts]


def alone(lm: LM, row: Sequence[int]) -> torch.Tensor:
    """Logits after a text that is read by itself, without a cache."""
    with torch.no_grad():
        return lm.model(torch.tensor([row]), use_cache=False).logits[0, -1]


def contents(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer."""
    return [(layer.keys, layer.values) for layer in cache.layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_whole_texts_while_rows_leave(family: str) -> None:
    lm = tiny_lm(family)
    texts = [list(row) for row in rows_of(lm)]
    rng = torch.Generator().manual_seed(0)
    with frozen(lm.model):
        decoding, ids = Decoding(lm, texts, max(map(len, texts)) + 6), None
        for step in range(6):
            found = decoding.next_logits(ids)
            for text, logits in zip(texts, found, strict=True):
                torch.testing.assert_close(logits, alone(lm, text), atol=2e-4, rtol=1e-3)
            ids = torch.randint(5, 100, (len(texts), 1), generator=rng)
            texts = [[*text, int(token)] for text, token in zip(texts, ids[:, 0], strict=True)]
            if step in (1, 3):
                index = torch.arange(len(texts)).flip(0)[:-1]  # one leaves, the others change places
                decoding.choose(index)
                ids, texts = ids[index], [texts[i] for i in index.tolist()]


def test_the_texts_are_read_once() -> None:
    lm = tiny_lm("llama")
    with frozen(lm.model):
        decoding = Decoding(lm, rows_of(lm), 20)
        decoding.next_logits()
        with pytest.raises(ValueError, match="have been read"):
            decoding.next_logits()


def test_keys_and_values_are_written_in_their_place() -> None:
    lm = tiny_lm("llama")
    ids = torch.tensor([rows_of(lm)[3][:6]] * 2)
    places = []
    with frozen(lm.model):
        own, usual = text_cache(lm, 12), DynamicCache(config=lm.model.config)
        for start in (0, 4, 5):
            part = ids[:, start : max(start + 1, 4)]
            logits = [lm.model(part, past_key_values=cache, use_cache=True).logits for cache in (own, usual)]
            assert torch.equal(*logits)
            places.append([keys.data_ptr() for keys, _ in contents(own)])
        assert places[0] == places[1] == places[2]
        assert own.get_seq_length() == usual.get_seq_length() == 6
        for cache in (own, usual):
            choose_rows(cache, torch.tensor([1]))
        for mine, theirs in zip(contents(own), contents(usual), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        with pytest.raises(RuntimeError):
            lm.model(torch.ones(1, 7, dtype=torch.long), past_key_values=own, use_cache=True)  # there is room for six


def test_a_text_longer_than_a_window_keeps_the_windows_layers() -> None:
    lm = tiny_lm("mistral")
    lm.model.config.sliding_window = 8
    windows = [isinstance(layer, DynamicSlidingWindowLayer) for layer in text_cache(lm, 8).layers]
    assert windows
    assert all(windows)
    assert not any(isinstance(layer, DynamicSlidingWindowLayer) for layer in text_cache(lm, 7).layers)
    for row, new in zip(rows_of(lm), greedy_ids(lm, rows_of(lm), 10), strict=True):
        for i, token in enumerate(new):
            assert token == int(alone(lm, [*row, *new[:i]]).argmax())


def operations(lm: LM, rows: Sequence[tuple[int, ...]], new: int) -> int:
    with Dispatched() as seen:
        texts = greedy_ids(lm, rows, new)
    assert [len(text) for text in texts] == [new] * len(rows)  # or the counts are of unlike work
    return seen.n


def test_a_step_has_fewer_operations_than_one_with_a_cache_that_is_copied() -> None:
    lm = tiny_lm("llama")
    lm.model.generation_config.eos_token_id = None
    rows = rows_of(lm)
    own = (operations(lm, rows, 6) - operations(lm, rows, 4)) / 2
    ids, mask = torch.ones(4, 1, dtype=torch.long), torch.ones(4, 12, dtype=torch.long)
    mask[0, :4] = 0
    cache = DynamicCache(config=lm.model.config)
    with frozen(lm.model):
        lm.model(torch.ones(4, 11, dtype=torch.long), past_key_values=cache, use_cache=True)
        with Dispatched() as seen:
            lm.model(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
    assert own < seen.n - 3 * lm.arch.n_layers  # the token's choice included
    assert own == (operations(lm, rows, 8) - operations(lm, rows, 4)) / 4  # whatever the length
    more = [*rows, *((*row, 7) for row in rows)]
    assert own == (operations(lm, more, 6) - operations(lm, more, 4)) / 2  # and the batch


def test_batches_are_bounded_by_memory_and_alike_in_every_run() -> None:
    lm = tiny_lm("llama")
    assert default_batch_tokens(lm) == 2048
    config = lm.model.config
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert cache < token_bytes(lm) <= cache + 16 * (config.hidden_size + config.intermediate_size)
    assert [bounded_tokens(memory, 100) for memory in (-5, 100, 1_000, 2_000, 1 << 60)] == [1, 1, 4, 8, MOST_TOKENS]
