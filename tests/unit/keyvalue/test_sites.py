"""Two sites in one objective, as PMET has them, against full forward passes; one site is what it always was."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kedit.forward.replay import Replay, Row, Site, site_module
from kedit.keyvalue import NLL, KLDivergence, ValueObjective, ValueOptimization, WeightDecay, optimise
from kedit.keyvalue.keys import hidden_states
from kedit.model.lm import LM
from kedit.model.tokenization import encode_subject
from kedit.request import EditRequest
from tests.support.tiny_models import tiny_lm

REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "The mother tongue of {}, who lives in Spain, is", "Danielle Darrieux", "English tea"),
    EditRequest("3", "{} is located in", "The Space Needle", "Tokyo"),
]
CONTEXTS = ["{}", "The meeting was. {}"]
TERMS = (NLL(), KLDivergence(0.5), WeightDecay(0.5))
PMET = [Site("attn", 1), Site("mlp", 1)]
APART = [Site("output", 2), Site("mlp", 1), Site("output", 0), Site("attn", 2)]


def logp(lm: LM, ids: Sequence[int], position: int, add: dict[Site, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of one row by a full pass with vectors added, and what they were added to, in order."""
    seen: dict[Site, Tensor] = {}

    def adds(site: Site):
        def hook(_: object, args: object, output: object) -> object:
            out = output[0] if isinstance(output, tuple) else output
            assert isinstance(out, Tensor)
            seen[site] = out[0, position].detach()
            mark = F.one_hot(torch.tensor(position), out.shape[1])[None, :, None]
            changed = out + mark * add[site]
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    with ExitStack() as stack:
        for site in add:
            stack.callback(site_module(lm, site).register_forward_hook(adds(site)).remove)
        found = lm.model(input_ids=torch.tensor([list(ids)])).logits[0].log_softmax(-1)
    return found, [seen[site] for site in add]


def naive(lm: LM, request: EditRequest, sites: list[Site], delta: Tensor) -> Tensor:
    """The objective by its definition, from `delta: [n_sites, d_model]`."""
    add, zero = dict(zip(sites, delta, strict=True)), {site: torch.zeros(lm.d_model) for site in sites}
    nll = torch.zeros(())
    for context in CONTEXTS:
        t = encode_subject(lm, request.prompt, request.named(), request.target_new, context)
        rows, _ = logp(lm, t.ids[:-1], t.subject_last, add)
        nll = nll - sum(rows[t.n_prompt - 1 + i, token] for i, token in enumerate(t.target)) / len(t.target)
    t = encode_subject(lm, request.prompt, request.named(), request.target_new)
    _, inits = logp(lm, t.ids[:-1], t.subject_last, zero)
    t = encode_subject(lm, "{} is a", request.named())
    after, before = (logp(lm, t.ids, t.subject_last, vectors)[0][t.subject_last] for vectors in (add, zero))
    kl = (after.exp() * (after - before.detach())).sum()
    decay = sum(own.norm() / init.norm() ** 2 for own, init in zip(delta, inits, strict=True))
    return nll / len(CONTEXTS) + 0.5 * kl + 0.5 * decay


@pytest.mark.parametrize("sites", [PMET, APART], ids=["pmet", "apart"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj"])
def test_several_sites_equal_full_forward_passes(kind: str, sites: list[Site]) -> None:
    lm = tiny_lm(kind)
    objective = ValueObjective(lm, REQUESTS, CONTEXTS, sites, TERMS)
    delta = torch.randn(3, len(sites) * lm.d_model, generator=torch.Generator().manual_seed(0)).requires_grad_()
    got = torch.stack(list(objective(delta).values())).sum(0)
    (gradient,) = torch.autograd.grad(got.sum(), delta)
    part = objective.select(torch.tensor([2]))
    torch.testing.assert_close(torch.stack(list(part(delta[2:]).values())).sum(0), got[2:], atol=1e-5, rtol=1e-6)
    for i, request in enumerate(REQUESTS):
        single = delta[i].detach().view(len(sites), -1).clone().requires_grad_()
        want = naive(lm, request, sites, single)
        torch.testing.assert_close(got[i], want, atol=1e-5, rtol=1e-6)
        (want_gradient,) = torch.autograd.grad(want, single)
        torch.testing.assert_close(gradient[i].view(len(sites), -1), want_gradient, atol=1e-4, rtol=1e-4)


def test_values_of_every_site_are_clamped_and_read_by_themselves() -> None:
    lm = tiny_lm("llama")
    objective = ValueObjective(lm, REQUESTS, CONTEXTS, PMET, TERMS)
    for site, init in zip(PMET, objective.split(objective.v_init), strict=True):
        states = hidden_states(lm, REQUESTS, site.layer, role=site.role)
        torch.testing.assert_close(init, states.float(), atol=1e-5, rtol=1e-5)
    lanes = ValueOptimization(objective, stop_loss=0.0, clamp_norm_factor=0.3)
    v_star = objective.split(optimise(lanes, lr=1.0, steps=6))
    assert [tuple(values.shape) for values in v_star] == [(3, lm.d_model)] * 2
    for values, init in zip(v_star, objective.split(objective.v_init), strict=True):
        moved = (values - init).norm(dim=1) / init.norm(dim=1)
        torch.testing.assert_close(moved, torch.full((3,), 0.3), atol=1e-4, rtol=1e-4)


def test_a_site_with_a_zero_vector_changes_nothing() -> None:
    """The loss and the gradient of the other site have the bits of an objective of that site alone."""
    lm = tiny_lm("llama")
    one, two = (ValueObjective(lm, REQUESTS, CONTEXTS, sites, (NLL(), KLDivergence())) for sites in (PMET[1:], PMET))
    delta = torch.randn(3, lm.d_model, generator=torch.Generator().manual_seed(1)).requires_grad_()
    both = torch.cat([torch.zeros(3, lm.d_model), delta.detach()], 1).requires_grad_()
    alone, beside = (torch.stack(list(o(d).values())) for o, d in ((one, delta), (two, both)))
    assert torch.equal(alone, beside)
    gradients = torch.autograd.grad(alone.sum(), delta)[0], torch.autograd.grad(beside.sum(), both)[0]
    assert torch.equal(gradients[0], two.split(gradients[1])[1])
    assert bool(two.split(gradients[1])[0].any())


def test_no_site_is_below_what_is_replayed() -> None:
    lm = tiny_lm("llama")
    replay = Replay(lm, [Row(tuple(lm.encode("The capital of France is")), 3)], 2)
    with pytest.raises(ValueError, match="below layer 2"):
        replay.run({Site("output", 0): torch.zeros(1, lm.d_model)})
