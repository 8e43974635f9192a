"""What a gate has seen of a text is the same however the text is read: at once, in parts, in a batch, in a lane."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.gate_state import choose_rows
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.pathways import Pathways
from kedit.errors import KeditError
from kedit.forward.greedy import greedy_ids
from kedit.forward.logits import logits_at
from kedit.forward.sampling import sample
from kedit.model.architecture import weight
from kedit.model.lm import LM
from tests.support.random_gates import gated
from tests.support.tiny_models import tiny_lm
from tests.support.ways import both_ways  # noqa: F401 (every test runs in both)


def plain(own: Delta) -> Delta:
    """The same gates without a hysteresis."""
    return Delta(
        {
            path: Pathways(tuple(replace(one, hysteresis=None) for one in pathways.adapters))
            for path, pathways in own.of_kind(Pathways).items()
        }
    )


def texts(n: int, length: int, seed: int = 7) -> Tensor:
    return torch.randint(5, 250, (n, length), generator=torch.Generator().manual_seed(seed))


def in_parts(lm: LM, ids: Tensor, cuts: list[int]) -> Tensor:
    cache, found = DynamicCache(config=lm.model.config), []
    for start, end in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        found.append(lm.model(ids[:, start:end], past_key_values=cache, use_cache=True).logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_text_read_in_parts(family: str) -> None:
    lm, ids = tiny_lm(family), texts(4, 12)
    own = gated(lm, 0, gates=2)
    with torch.no_grad():
        with edited(lm.model, own):
            whole = lm.model(ids).logits
            parts = [in_parts(lm, ids, cuts) for cuts in ([5], [1, 2, 3, 8], list(range(1, 12)))]
            again = lm.model(ids).logits  # a new text begins with nothing
        with edited(lm.model, plain(own)):
            alone = lm.model(ids).logits
    for found in [*parts, again]:
        torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)
    assert (whole - alone).abs().max() > 1e-2  # what is lent matters here


def test_a_cache_that_the_model_made() -> None:
    lm, ids = tiny_lm("llama"), texts(2, 10)
    with torch.no_grad(), edited(lm.model, gated(lm, 0)):
        first = lm.model(ids[:, :6], use_cache=True)
        second = lm.model(ids[:, 6:], past_key_values=first.past_key_values, use_cache=True)
        torch.testing.assert_close(second.logits, lm.model(ids).logits[:, 6:], atol=1e-4, rtol=1e-4)


def test_padding_lends_nothing() -> None:
    lm, ids = tiny_lm("llama"), texts(3, 9)
    for seed, pads in ((0, 1), (1, 4), (2, 9)):
        padded = torch.cat([texts(3, pads, seed), ids], 1)
        mask = torch.ones_like(padded)
        mask[:, :pads] = 0
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad(), edited(lm.model, gated(lm, seed)):
            found = lm.model(padded, attention_mask=mask, position_ids=positions).logits[:, pads:]
            torch.testing.assert_close(found, lm.model(ids).logits, atol=1e-4, rtol=1e-4)


def next_ids(lm: LM, row: tuple[int, ...], n: int) -> list[int]:
    """Greedy decoding without a cache."""
    ids = list(row)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(lm.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == lm.tokenizer.eos_token_id:
            break
    return ids[len(row) :]


def test_a_layer_by_itself() -> None:
    """OPT flattens what its feed-forward block is given; the texts are those of the layer."""
    lm = tiny_lm("opt")
    states = torch.randn(3, 6, lm.d_model)
    layer = lm.arch.layer(lm.model, 1)
    with torch.no_grad(), edited(lm.model, gated(lm, 0)):
        together = layer(states)
        for row in range(3):
            alone = layer(states[row : row + 1])
            a, b = (found[0] if isinstance(found, tuple) else found for found in (together, alone))
            torch.testing.assert_close(a[row], b.view(6, -1), atol=1e-4, rtol=1e-4)


def test_generation_in_batches_and_lanes_is_that_without_a_cache() -> None:
    """Rows of different lengths, padded, end at different steps and leave the batch."""
    lm = tiny_lm("llama")
    rows = [tuple(texts(1, n, seed=n)[0].tolist()) for n in (3, 5, 8, 8, 4, 11)]
    owns = [gated(lm, 0), gated(lm, 1, gates=3)]
    bank, lanes = BatchedDeltas(lm.model, owns), [0, 1, -1, 0, 1, 1]
    found = greedy_ids(lm, rows, 12, lanes=lanes, bank=bank)
    drawn = sample(lm, rows, 12, top_k=1, mixed=True, lanes=lanes, bank=bank)
    differs = 0
    for row, lane, new, text in zip(rows, lanes, found, drawn, strict=True):
        with edited(lm.model, *([owns[lane]] if lane >= 0 else [])):
            assert new == next_ids(lm, row, 12)
            assert text[len(row) :] == new
        if lane >= 0:
            with edited(lm.model, plain(owns[lane])):
                differs += new != next_ids(lm, row, 12)
    assert differs


def test_rows_of_a_cache_are_chosen_with_their_openings() -> None:
    lm, ids = tiny_lm("llama"), texts(4, 10)
    index = torch.tensor([2, 0])
    every = torch.arange(2)
    with torch.no_grad(), edited(lm.model, gated(lm, 0)):
        cache = DynamicCache(config=lm.model.config)
        lm.model(ids[:, :6], past_key_values=cache, use_cache=True)
        choose_rows(cache, index)
        found, _ = logits_at(lm, ids[index, 6:], every, torch.full_like(every, -1), past_key_values=cache)
        torch.testing.assert_close(found, lm.model(ids[index]).logits[:, -1], atol=1e-4, rtol=1e-4)
        cache.batch_select_indices(torch.tensor([0]))
        with pytest.raises(KeditError, match="a cache of 2 texts goes on with 1"):
            lm.model(ids[:1, :1], past_key_values=cache)
        module = lm.arch.module(lm.model, "mlp_out", 1)
        module(torch.randn(5, 4, weight(module).shape[1]))  # the refused pass is over: these are a layer's own texts
        torch.testing.assert_close(lm.model(ids).logits[index, -1], found, atol=1e-4, rtol=1e-4)  # and goes on


def test_two_deltas_at_once_and_hooks_are_gone_afterwards() -> None:
    lm, ids = tiny_lm("llama"), texts(2, 10)
    before = lm.model(ids).logits.detach()
    with torch.no_grad():
        with edited(lm.model, gated(lm, 0)), BatchedDeltas(lm.model, [gated(lm, 3)]).rows(torch.tensor([0, -1])):
            torch.testing.assert_close(in_parts(lm, ids, [4, 5]), lm.model(ids).logits, atol=1e-4, rtol=1e-4)
        assert torch.equal(lm.model(ids).logits, before)
    assert not lm.model._forward_hooks
    assert not lm.model._forward_pre_hooks
