"""`kedit.keyvalue.keys` against one full forward pass per prompt, with hooks; and what must not change its numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.lanes import BatchedDeltas
from kedit.forward.replay import Site
from kedit.keyvalue import NLL, ValueObjective
from kedit.keyvalue.contexts import ContextConfig, context_groups
from kedit.keyvalue.keys import context_weights, hidden_states, mean_keys
from kedit.model.lm import LM
from kedit.model.tokenization import encode_subject
from kedit.request import EditRequest
from tests.support.tiny_models import tiny_lm
from tests.unit.keyvalue.test_solvers import random_delta

REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "The mother tongue of {}, who lives in Spain, is", "Danielle Darrieux", "English tea"),
    EditRequest("3", "{} is located in", "The Space Needle", "Tokyo"),
    EditRequest("4", "{}", "Windows", "developed by Microsoft"),
    EditRequest("5", "The capital of {} was", "France", "Cairo"),  # the same row as the first, up to the subject
]
CONTEXTS = ["{}", "The meeting was. {}", "Because of the rain, we stayed. {}"]
WEIGHTS = [0.5, 0.25, 0.25]


def naive(lm: LM, request: EditRequest, context: str, layer: int) -> tuple[Tensor, Tensor]:
    """Key of `layer` and residual stream after it, at the subject's last token of one whole prompt."""
    t = encode_subject(lm, request.prompt, request.named(), context=context)
    seen: dict[str, Tensor] = {}

    def key(_: object, args: tuple[Tensor, ...], __: object) -> None:
        seen["key"] = args[0].reshape(len(t.ids), -1)[t.subject_last]

    def state(_: object, __: object, output: object) -> None:
        out = output[0] if isinstance(output, tuple) else output
        assert isinstance(out, Tensor)
        seen["state"] = out[0, t.subject_last]

    handles = [
        lm.arch.module(lm.model, "mlp_out", layer).register_forward_hook(key),
        lm.arch.layer(lm.model, layer).register_forward_hook(state),
    ]
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([t.ids]))
    for handle in handles:
        handle.remove()
    return seen["key"], seen["state"]


def naive_mean(lm: LM, request: EditRequest, layer: int) -> Tensor:
    keys = [naive(lm, request, context, layer)[0] * w for context, w in zip(CONTEXTS, WEIGHTS, strict=True)]
    return torch.stack(keys).sum(0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "gptj", "gemma2"])
@pytest.mark.parametrize("layer", [0, 2])
def test_keys_and_states_are_those_of_full_passes(kind: str, layer: int) -> None:
    lm = tiny_lm(kind, n_layers=3)
    keys = mean_keys(lm, REQUESTS, CONTEXTS, WEIGHTS, layer)
    want = torch.stack([naive_mean(lm, request, layer) for request in REQUESTS])
    torch.testing.assert_close(keys.float(), want, atol=1e-4, rtol=1e-4)
    states = hidden_states(lm, REQUESTS, layer)
    want = torch.stack([naive(lm, request, "{}", layer)[1] for request in REQUESTS])
    torch.testing.assert_close(states.float(), want, atol=1e-4, rtol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_batching_changes_nothing(kind: str) -> None:
    lm = tiny_lm(kind, n_layers=3)

    def read(requests: Sequence[EditRequest], batch_tokens: int) -> Tensor:
        keys = mean_keys(lm, requests, CONTEXTS, WEIGHTS, 2, batch_tokens=batch_tokens)
        return torch.cat([keys, hidden_states(lm, requests, 2, batch_tokens=batch_tokens)], 1)

    together = read(REQUESTS, 10_000)
    for other in (
        read(REQUESTS, 1),
        read(REQUESTS, 40),
        read(REQUESTS[::-1], 10_000).flip(0),
        torch.cat([read([request], 10_000) for request in REQUESTS]),
    ):
        torch.testing.assert_close(other, together, atol=1e-4, rtol=1e-5)


def test_lanes_see_their_own_model() -> None:
    lm = tiny_lm("llama", n_layers=3)
    paths = [lm.arch.path("mlp_out", i) for i in (0, 1)]
    deltas = [random_delta(lm.model, paths, seed=i) for i in range(3)]
    bank, lanes = BatchedDeltas(lm.model, deltas), [1, -1, 0, 2, 2]
    keys = mean_keys(lm, REQUESTS, CONTEXTS, WEIGHTS, 2, bank, lanes)
    states = hidden_states(lm, REQUESTS, 2, bank, lanes)
    for i, lane in enumerate(lanes):
        with edited(lm.model, *([deltas[lane]] if lane >= 0 else [])):
            torch.testing.assert_close(
                keys[i : i + 1], mean_keys(lm, [REQUESTS[i]], CONTEXTS, WEIGHTS, 2), atol=1e-3, rtol=1e-3
            )
            torch.testing.assert_close(states[i : i + 1], hidden_states(lm, [REQUESTS[i]], 2), atol=1e-3, rtol=1e-3)


def test_h_is_what_the_value_starts_from() -> None:
    lm = tiny_lm("gpt2", n_layers=3)
    for layer in (1, 2):
        start = ValueObjective(lm, REQUESTS, CONTEXTS, [Site("output", layer)], [NLL()]).v_init
        torch.testing.assert_close(hidden_states(lm, REQUESTS, layer).float(), start, atol=1e-5, rtol=1e-5)


def test_a_group_counts_as_much_as_the_bare_prompt() -> None:
    assert context_weights([1, 5]) == pytest.approx([1 / 2, *[1 / 10] * 5])
    assert context_weights([1]) == [1.0]
    assert context_weights([1, 2, 4]) == pytest.approx([1 / 3, 1 / 6, 1 / 6, *[1 / 12] * 4])
    assert context_groups(ContextConfig(lengths=[[10, 5]]), ["{}", *["a. {}"] * 5]) == [1, 5]
    assert context_groups(ContextConfig(lengths=[]), ["{}"]) == [1]
    assert context_groups(ContextConfig(texts=["a. {}", "b. {}"]), ["{}", "a. {}", "b. {}"]) == [1, 2]
