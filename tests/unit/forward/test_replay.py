"""Replay and lanes against full forward passes and one-at-a-time runs (issue: "Replay equals the full forward")."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kedit.forward.replay import Role, Site
from kedit.keyvalue import NLL, KLDivergence, ValueObjective, ValueOptimization, WeightDecay, optimise
from kedit.model.lm import LM
from kedit.model.tokenization import encode_subject
from kedit.request import EditRequest
from tests.support.tiny_models import KINDS, tiny_lm

REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "The mother tongue of {}, who lives in Spain, is", "Danielle Darrieux", "English tea"),
    EditRequest("3", "{} is located in", "The Space Needle", "Tokyo"),
    EditRequest("4", "{}", "Windows", "developed by Microsoft"),  # the subject is the whole prompt
]
CONTEXTS = ["{}", "The meeting was. {}", "Because of the rain, we stayed. {}"]
TERMS = (NLL(), KLDivergence(), WeightDecay(0.5))


def naive_loss(
    lm: LM,
    request: EditRequest,
    contexts: Sequence[str],
    layer: int,
    role: Role,
    delta: Tensor,
    reference: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The objective by its definition: a full forward pass for every row, full logits; and the KL reference."""
    module = lm.arch.layer(lm.model, layer) if role == "output" else lm.arch.module(lm.model, role, layer)
    seen: list[Tensor] = []

    def logp(ids: Sequence[int], position: int) -> Tensor:
        def hook(_: object, args: object, output: object) -> object:
            out = output[0] if isinstance(output, tuple) else output
            assert isinstance(out, Tensor)
            rows = out.reshape(1, -1, out.shape[-1])
            seen.append(rows[0, position].detach())
            mark = F.one_hot(torch.tensor(position), rows.shape[1])[None, :, None]
            changed = (rows + mark * delta).reshape(out.shape)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = module.register_forward_hook(hook)
        try:
            return lm.model(input_ids=torch.tensor([list(ids)])).logits[0].log_softmax(-1)
        finally:
            handle.remove()

    nll = torch.zeros(())
    for context in contexts:
        t = encode_subject(lm, request.prompt, request.named(), request.target_new, context)
        rows = logp(t.ids[:-1], t.subject_last)
        nll = nll - sum(rows[t.n_prompt - 1 + i, token] for i, token in enumerate(t.target)) / len(t.target)
    v_init = seen[0]
    t = encode_subject(lm, "{} is a", request.named())
    edited = logp(t.ids, t.subject_last)[t.subject_last]
    reference = edited.detach() if reference is None else reference
    kl = (edited.exp() * (edited - reference)).sum()
    wd = delta.norm() / v_init.norm() ** 2
    return nll / len(contexts) + 0.0625 * kl + 0.5 * wd, reference


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(("role", "layer"), [("mlp", 1), ("attn", 2), ("output", 1), ("output", 3), ("mlp", 0)])
def test_objective_equals_full_forward(kind: str, role: Role, layer: int) -> None:
    lm = tiny_lm(kind)
    objective = ValueObjective(lm, REQUESTS, CONTEXTS, [Site(role, layer)], TERMS)
    delta = torch.randn(len(REQUESTS), lm.d_model, generator=torch.Generator().manual_seed(0)).requires_grad_()
    got = torch.stack(list(objective(delta).values())).sum(0)
    (gradient,) = torch.autograd.grad(got.sum(), delta)
    for i, request in enumerate(REQUESTS):
        _, reference = naive_loss(lm, request, CONTEXTS, layer, role, torch.zeros(lm.d_model), None)
        single = delta[i].detach().clone().requires_grad_()
        want, _ = naive_loss(lm, request, CONTEXTS, layer, role, single, reference)
        torch.testing.assert_close(got[i], want, atol=1e-5, rtol=1e-6)
        (want_gradient,) = torch.autograd.grad(want, single)
        torch.testing.assert_close(gradient[i], want_gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama", "qwen2"])
def test_every_step_equals_full_forward(kind: str) -> None:
    """The losses along an optimisation, and v* at its end, by replay and by full forward passes."""
    lm, request, layer = tiny_lm(kind), REQUESTS[1], 1
    lanes = ValueOptimization(
        ValueObjective(lm, [request], CONTEXTS, [Site("mlp", layer)], TERMS), stop_loss=0.0, clamp_norm_factor=3.0
    )
    delta = torch.zeros(lm.d_model, requires_grad=True)
    ours, theirs = torch.optim.Adam([lanes.delta], lr=0.1), torch.optim.Adam([delta], lr=0.1)
    reference = None
    for _ in range(6):
        ours.zero_grad()
        theirs.zero_grad()
        loss = lanes.loss()
        want, reference = naive_loss(lm, request, CONTEXTS, layer, "mlp", delta, reference)
        assert abs(float(loss.detach()) - float(want.detach())) < 1e-5 * max(1.0, abs(float(want.detach())))
        loss.backward()
        want.backward()
        ours.step()
        theirs.step()
        lanes.after_step()
        with torch.no_grad():
            norm, limit = delta.norm(), lanes.limit[0, 0]
            if norm > limit:
                delta *= limit / norm
    torch.testing.assert_close(lanes.delta[0].detach(), delta.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_lanes_equal_one_at_a_time(kind: str) -> None:
    """Lanes that stop at different steps end where they would have ended alone."""
    lm = tiny_lm(kind)

    def run(requests: list[EditRequest], stop_loss: float) -> ValueOptimization:
        objective = ValueObjective(lm, requests, CONTEXTS, [Site("mlp", 1)], TERMS)
        lanes = ValueOptimization(objective, stop_loss=stop_loss, clamp_norm_factor=5.0)
        optimise(lanes, lr=0.2, steps=12)
        return lanes

    reached = run(REQUESTS, 0.0).total.sort().values
    stop_loss = float(reached[1] + reached[2]) / 2  # two lanes get below it, two do not
    together = run(REQUESTS, stop_loss)
    alone = [run([request], stop_loss) for request in REQUESTS]
    assert together.steps.tolist() == [int(lanes.steps[0]) for lanes in alone]
    assert len(set(together.steps.tolist())) > 1
    torch.testing.assert_close(together.v_star, torch.cat([lanes.v_star for lanes in alone]), atol=1e-4, rtol=1e-4)


def test_keys_and_values_are_those_of_a_full_forward() -> None:
    lm, layer = tiny_lm("gpt2"), 2
    keys, values = ValueObjective(lm, REQUESTS, CONTEXTS, [Site("mlp", layer)], TERMS).keys_and_values()
    module = lm.arch.module(lm.model, "mlp_out", layer)
    for i, request in enumerate(REQUESTS):
        for j, context in enumerate(CONTEXTS):
            t = encode_subject(lm, request.prompt, request.named(), context=context)
            seen: list[Tensor] = []
            at = t.subject_last

            def hook(_: object, args: tuple[Tensor, ...], out: Tensor, seen: list[Tensor] = seen, at: int = at) -> None:
                seen.extend((args[0][0, at], out[0, at]))

            handle = module.register_forward_hook(hook)
            lm.model(input_ids=torch.tensor([list(t.ids)]))
            handle.remove()
            torch.testing.assert_close(keys[i, j], seen[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(values[i, j], seen[1], atol=1e-5, rtol=1e-5)


def test_kl_is_zero_without_a_delta_and_the_clamp_holds() -> None:
    lm = tiny_lm("llama")
    objective = ValueObjective(lm, REQUESTS, CONTEXTS, [Site("mlp", 1)], TERMS)
    losses = objective(torch.zeros(len(REQUESTS), lm.d_model))
    torch.testing.assert_close(losses["kl"], torch.zeros(len(REQUESTS)), atol=1e-6, rtol=0)
    lanes = ValueOptimization(objective, stop_loss=0.0, clamp_norm_factor=0.7)
    optimise(lanes, lr=1.0, steps=5)
    assert bool((lanes.delta.norm(dim=1) <= 0.7 * objective.v_init.norm(dim=1) * (1 + 1e-5)).all())
    assert bool((lanes.steps == 4).all())


def test_a_lane_whose_loss_is_not_finite_fails_alone() -> None:
    lm = tiny_lm("gpt2")
    objective = ValueObjective(lm, REQUESTS, CONTEXTS, [Site("mlp", 1)], TERMS)
    lanes = ValueOptimization(objective, stop_loss=0.0)
    with torch.no_grad():
        lanes.delta[2] = float("nan")
    v_star = optimise(lanes, lr=0.1, steps=4)
    assert lanes.failed.tolist() == [False, False, True, False]
    assert bool(torch.isfinite(v_star[[0, 1, 3]]).all())
    assert lanes.steps.tolist() == [3, 3, 0, 3]


def test_weights_and_forward_are_untouched() -> None:
    """Capturing leaves no hook and no patched forward behind."""
    lm = tiny_lm("llama")
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    objective = ValueObjective(lm, REQUESTS, CONTEXTS, [Site("mlp", 1)], TERMS)
    optimise(ValueOptimization(objective), lr=0.1, steps=3)
    assert all(torch.equal(before[name], value) for name, value in lm.model.state_dict().items())
    for module in lm.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)
    assert all(p.grad is None for p in lm.model.parameters())
