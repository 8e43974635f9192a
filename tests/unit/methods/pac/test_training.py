"""PAC's steps: the labels they train on, their losses and gradients against those of the dense model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.slices import Slices
from kedit.methods.pac import ContrastConfig, Objective, Site, encode_request, greedy_answers
from kedit.methods.pac.trainable import Theta
from kedit.model.architecture import weight
from kedit.model.lm import LM
from tests.support.pac_cases import (
    LAMBDA,
    REQUESTS,
    asked,
    both_losses,
    course_of,
    dense,
    draw,
    go,
    lines_of,
    sides_of,
    small,
    step,
    values,
)


@pytest.mark.parametrize("kind", ["llama", "gptj", "gpt2"])
def test_greedy_answers(kind: str) -> None:
    lm = small(kind)
    texts = [encode_request(lm, request) for request in REQUESTS]
    found = greedy_answers(lm, texts)
    assert [(t.ids, t.n_prompt) for t in found] == [(r.original.ids, r.text.n_prompt) for r in asked(lm, greedy=True)]
    assert [len(t.target) for t in found] == [len(t.target) for t in texts]
    assert found != texts


@pytest.mark.parametrize("theta", ["updated", "instead"])
@pytest.mark.parametrize("objective", ["alternate", "joint"])
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("per_edit", [False, True])
def test_losses_are_those_at_the_weights_of_theta(
    theta: Theta, objective: Objective, greedy: bool, per_edit: bool
) -> None:
    """updated: both losses see both changes; instead: each sees its own alone."""
    lm = small()
    requests, sides = asked(lm, greedy), sides_of(lm, theta=theta)
    optimizer = sides.take(draw(lm))
    contrast_config = ContrastConfig(LAMBDA, theta=theta)
    course = course_of(lm, sides, requests, objective=objective, per_edit=per_edit, contrast=contrast_config)
    for i in range(6 if objective == "alternate" else 3):
        critical, contrast = sides.critical.delta(), sides.contrast.delta()
        with torch.no_grad(), edited(lm.model, *([critical, contrast] if theta == "updated" else [critical])):
            edit = float(both_losses(lm, requests, per_edit)[0])
        with torch.no_grad(), edited(lm.model, *([critical, contrast] if theta == "updated" else [contrast])):
            contrast = LAMBDA * float(both_losses(lm, requests, per_edit)[1])
        want = edit + contrast if objective == "joint" else (edit, contrast)[i % 2]
        assert step(course, optimizer) == pytest.approx(want, abs=2e-5)
        if i > 1:
            assert all(value.any() for side in (sides.critical, sides.contrast) for value in values(side).values())
            other = critical if theta == "instead" else Delta()
            with torch.no_grad(), edited(lm.model, other):
                away = LAMBDA * float(both_losses(lm, requests, per_edit)[1])
            assert abs(away - contrast) > 1e-4, "the two weights cannot be told apart here"
    assert step(course, optimizer) is None


@pytest.mark.parametrize("kind", ["llama", "gptj"])
@pytest.mark.parametrize("greedy", [False, True])
def test_joint_gradient_is_that_of_the_sum(kind: str, greedy: bool) -> None:
    """Lines of the dense gradient of L(y*) + lambda L(y), one forward pass where y has the positions of y*."""
    lm = small(kind)
    requests, sides = asked(lm, greedy), sides_of(lm)
    optimizer = sides.take(draw(lm))
    course = course_of(lm, sides, requests, objective="joint", best=False, rollback=0.0)
    step(course, optimizer)
    whole = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.name)
    modules = dict(whole.model.named_modules())
    for path, change in dense(sides.delta()).items():
        weight(modules[path]).add_(change)
        modules[path].weight.requires_grad_(True)  # type: ignore[union-attr]
    edit, contrast = both_losses(whole, requests, per_edit=True)
    (edit + LAMBDA * contrast).backward()

    calls: list[int] = []
    handle = lm.model.register_forward_hook(lambda *_: calls.append(1))
    loss = course.loss()
    handle.remove()
    assert len(calls) == 1 + greedy
    assert loss is not None
    optimizer.zero_grad()
    loss.backward()
    course.before_step()
    total = 0.0
    for side in (sides.critical, sides.contrast):
        for site, found in side.lines.gradients().items():
            grad: Any = modules[site.path].weight.grad
            want = lines_of(site, grad, side.index[site])
            torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-3)
            assert want.abs().max() > 1e-3
            total += float(want.square().sum())
    assert float(course.terms["edit_gradient"]) == pytest.approx(total**0.5, rel=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_the_gradient_norm_is_that_of_the_trained_side(shared: bool) -> None:
    lm = small()
    requests, selection = asked(lm), draw(lm)
    sides = sides_of(lm, shared=shared)
    optimizer = sides.take(selection)
    course = course_of(lm, sides, requests)
    for name, nodes in ("edit", selection.critical), ("contrast", selection.contrast):
        whole = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.name)
        modules = dict(whole.model.named_modules())
        for path, change in dense(sides.delta()).items():
            weight(modules[path]).add_(change)
            modules[path].weight.requires_grad_(True)  # type: ignore[union-attr]
        losses = both_losses(whole, requests, per_edit=True)
        (losses[0] if name == "edit" else LAMBDA * losses[1]).backward()
        grads: dict[Site, Any] = {site: modules[site.path].weight.grad for site in nodes}
        want = sum(float(lines_of(s, grads[s], own).square().sum()) for s, own in nodes.items()) ** 0.5
        step(course, optimizer)
        assert course.terms[f"{name}_gradient"] == pytest.approx(want, rel=1e-4)


def test_lambda_cancels_in_adam() -> None:
    """Two lambdas move T- alike where Adam's eps is out of the way, though its gradients are tenfold (pac.md 0.5)."""
    moved, norms = [], []
    for scale in (0.1, 0.01):
        lm = small()
        sides = sides_of(lm)
        optimizer = sides.take(draw(lm))
        for group in optimizer.param_groups:
            group["eps"] = 1e-30
        course = course_of(lm, sides, asked(lm), contrast=ContrastConfig(scale))
        go(course, optimizer)
        moved.append(torch.cat([value.flatten() for value in values(sides.contrast).values()]))
        norms.append(course.terms["contrast_gradient"])
    assert moved[0].abs().max() > 1e-2
    torch.testing.assert_close(moved[0], moved[1], atol=2e-4, rtol=1e-3)
    assert norms[0] / norms[1] == pytest.approx(10, rel=1e-2)


@pytest.mark.parametrize("shared", [False, True])
def test_without_a_contrast_bottom_is_not_taken(shared: bool) -> None:
    lm = small()
    requests, selection = asked(lm), draw(lm)
    sides = sides_of(lm, shared=shared, contrast_lr=None)
    course = course_of(lm, sides, requests)
    assert len(go(course, sides.take(selection))) == course.most == 3
    delta = sides.delta()
    for site, nodes in selection.critical.items():
        assert torch.equal(delta.of_kind(Slices)[site.path].index, nodes)
        assert delta.of_kind(Slices)[site.path].values.any()
