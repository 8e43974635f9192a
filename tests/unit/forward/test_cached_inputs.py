"""Passes that begin at a layer: the logits and gradients of whole passes, for any of the texts, padded or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kedit.forward.cached_inputs import CachedInputs
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.model.tokenization import pad_right
from tests.support.tiny_models import KINDS, tiny_lm

TEXTS = ("The capital of France is Paris", "Berlin", "The mother tongue of Danielle Darrieux is French", "Berlin")


def ids_of(lm: LM) -> list[tuple[int, ...]]:
    return [tuple(lm.encode(text)) for text in TEXTS]


def last_tokens(lm: LM, index: list[int]) -> tuple[Tensor, Tensor]:
    texts = ids_of(lm)
    return torch.arange(len(index)), torch.tensor([len(texts[i]) - 1 for i in index])


def gradient(lm: LM, inputs: CachedInputs | None, index: list[int], layer: int) -> tuple[Tensor, Tensor]:
    """Logits at two tokens of each, and the gradient of a number made of them with respect to the edited matrix."""
    w = lm.arch.module(lm.model, "mlp_out", layer).get_parameter("weight").requires_grad_(True)
    rows, last = last_tokens(lm, index)
    rows, cols = rows.repeat(2), torch.cat([last, (last - 2).clamp(min=0)])
    if inputs is None:  # the model by itself
        texts = [ids_of(lm)[i] for i in index]
        logits = lm.model(pad_right(texts, lm.pad_id, lm.device)[0], use_cache=False).logits[rows, cols]
    else:
        logits = inputs.logits(index, rows, cols)
    (found,) = torch.autograd.grad(logits.float().log_softmax(-1)[:, 7].sum(), [w])
    w.requires_grad_(False)
    return logits.detach(), found


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_equal_whole_passes(kind: str) -> None:
    lm = tiny_lm(kind, n_layers=4)
    for first in (1, 2, 3):
        plain, cached = CachedInputs(lm, ids_of(lm), 0), CachedInputs(lm, ids_of(lm), first, batch_tokens=12)
        assert plain.nbytes == 0 < cached.nbytes
        for index in ([0, 1, 2], [2, 0], [1], [3, 1, 1]):
            wanted = gradient(lm, None, index, first)
            found = [*gradient(lm, plain, index, first), *gradient(lm, cached, index, first)]
            for one, other in zip(wanted * 2, found, strict=True):
                torch.testing.assert_close(other, one, atol=1e-5 * float(one.abs().max()), rtol=1e-5)


def test_each_text_is_kept_once_in_the_model_s_own_type() -> None:
    lm = tiny_lm("llama", dtype=torch.bfloat16)
    texts = ids_of(lm)
    cached = CachedInputs(lm, texts, 2, batch_tokens=1)  # each by itself, as it is run below
    assert cached.nbytes == sum(len(text) for text in set(texts)) * lm.d_model * 2
    where = last_tokens(lm, [0])
    assert torch.equal(cached.logits([0], *where), CachedInputs(lm, texts, 0).logits([0], *where))


def test_layers_below_do_not_run_and_come_back() -> None:
    lm = tiny_lm("gpt2")
    cached = CachedInputs(lm, ids_of(lm), 2)
    wanted = cached.logits([0, 2], *last_tokens(lm, [0, 2]))
    with torch.no_grad():
        for layer in (0, 1):
            weight(lm.arch.module(lm.model, "mlp_out", layer)).add_(1.0)
    assert torch.equal(cached.logits([0, 2], *last_tokens(lm, [0, 2])), wanted)
    plain = CachedInputs(lm, ids_of(lm), 0).logits([0, 2], *last_tokens(lm, [0, 2]))
    assert not torch.allclose(plain, wanted)
    assert not any("forward" in vars(module) for module in lm.model.modules())


def test_a_layer_that_is_not_there() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(ValueError, match="no layer 5"):
        CachedInputs(lm, ids_of(lm), 5)
