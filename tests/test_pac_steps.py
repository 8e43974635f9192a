"""PAC's parts by themselves: its steps and losses, its two sides, what it keeps, how many nodes it chooses."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.arch import weight
from kedit.delta import Delta, edited
from kedit.errors import KeditError
from kedit.lm import LM
from kedit.pac import (
    Bias,
    ContrastConfig,
    KeepConfig,
    Keeper,
    Labelled,
    Profile,
    Rectifier,
    Request,
    Scores,
    Selection,
    Sides,
    Site,
    StepConfig,
    Steps,
    TraceConfig,
    choose,
    encode_request,
    greedy_answers,
    labelled,
    layer_weights,
    sites,
)
from kedit.pac.choose import size_of
from kedit.pac.sides import Theta
from kedit.pac.training import Objective
from kedit.requests import EditRecord, EditRequest, Probe
from kedit.tokens import Tokens
from tests.tiny import tiny_lm

REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "{} plays", "Lionel Messi", "basketball for the Lakers"),
    EditRequest("3", "What is the twin city of Cologne?", None, "Paris tea"),
    EditRequest("4", "The mother tongue of {} is", "Danielle Darrieux", "English"),
]
LAMBDA = 0.1


def small(kind: str = "llama", **kwargs: Any) -> LM:
    options: dict[str, Any] = {"n_layers": 2, "d_model": 16, "d_ff": 40} | kwargs
    lm = tiny_lm(kind, **options)
    lm.model.requires_grad_(False)
    return lm


def logits_alone(lm: LM, text: Tokens) -> Tensor:
    """Logits that predict the target's tokens, of the text by itself, `[n, vocab]`."""
    return lm.model(torch.tensor([text.ids])).logits[0, text.n_prompt - 1 : len(text.ids) - 1]


def asked(lm: LM, greedy: bool = False) -> list[Request]:
    """The requests, and what the model says, one text and one token at a time."""
    found = []
    for request in REQUESTS:
        text = encode_request(lm, request)
        if greedy:
            ids = text.ids[: text.n_prompt]
            for _ in text.target:
                ids += (int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()),)
            original = Tokens(ids, text.n_prompt)
            said = original.target
        else:
            original, said = text, tuple(logits_alone(lm, text).argmax(-1).tolist())
        found.append(Request(request.case_id, text, original, said))
    return found


def easy(lm: LM, n: int) -> list[Request]:
    """Requests whose target is what the model says already."""
    return [Request(f"easy-{r.case}", r.original, r.original, r.said) for r in asked(lm, greedy=True)[:n]]


def mean_nll(lm: LM, texts: Sequence[Tokens], labels: Sequence[Sequence[int]], per_edit: bool) -> Tensor:
    """-log p of the labels, text by text: the mean of the texts' means, or over all tokens."""
    losses = [
        -logits_alone(lm, text).log_softmax(-1)[torch.arange(len(own)), torch.tensor(own)]
        for text, own in zip(texts, labels, strict=True)
    ]
    return torch.stack([loss.mean() for loss in losses]).mean() if per_edit else torch.cat(losses).mean()


def draw(lm: LM, seed: int = 0, nodes: int = 3) -> Selection:
    return Selection.random(sites(lm), nodes, 2, torch.Generator().manual_seed(seed))


def sides_of(lm: LM, lr: float = 1e-2, shared: bool = False, theta: Theta = "updated", **more: Any) -> Sides:
    options = {"bias": "none", "contrast_lr": lr} | more
    return Sides(lm, options["bias"], lr, options["contrast_lr"], shared, theta)


CONFIG = StepConfig("alternate", ContrastConfig(LAMBDA), KeepConfig(), 4, stop=False, margin=0.0, per_edit=True)


def course_of(lm: LM, sides: Sides, requests: list[Request], passes: int = 3, **changed: Any) -> Steps:
    own = {key: changed.pop(key) for key in ("keeper",) if key in changed}
    return Steps(lm, sides, requests, replace(CONFIG, **changed), passes, torch.Generator().manual_seed(0), **own)


def step(course: Steps, optimizer: torch.optim.Optimizer) -> float | None:
    """One step; its loss, or None where nothing was left."""
    loss = course.loss()
    if loss is None:
        return None
    optimizer.zero_grad()
    loss.backward()
    course.before_step()
    optimizer.step()
    return float(loss.detach())


def go(course: Steps, optimizer: torch.optim.Optimizer) -> list[float]:
    """All steps."""
    losses: list[float] = []
    while (loss := step(course, optimizer)) is not None:
        losses.append(loss)
    return losses


def values(side: Rectifier) -> dict[Site, Tensor]:
    return {site: value.detach().clone() for site, value in side.values.items()}


def same(one: dict[Site, Tensor], other: dict[Site, Tensor]) -> bool:
    return all(torch.equal(value, other[site]) for site, value in one.items())


def dense(delta: Delta) -> dict[str, Tensor]:
    """Changes of weights and biases as they are added."""
    return {path: part.dense() for path, part in delta.slices.items()} | {
        f"{path}.bias": change for path, change in delta.biases.items()
    }


def lines_of(site: Site, matrix: Tensor, nodes: Tensor) -> Tensor:
    """Nodes `[n, D]` of a matrix in the mathematical orientation."""
    return matrix[:, nodes].T if site.kind == "value" else matrix[nodes + site.offset]


# -- labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_answered(margin: float) -> None:
    """Every label ahead of every other token, strictly, by the margin: rows of two, three and one label."""
    generator = torch.Generator().manual_seed(1)
    rows, labels = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([3, 1, 0, 2, 4, 4])
    batch = Labelled(torch.zeros(3, 5, dtype=torch.long), rows, rows, labels, torch.ones(6))
    seen = set()
    for trial in range(60):
        logits = torch.randn(6, 5, generator=generator)
        logits[torch.arange(6), labels] += 2.5
        if trial % 2:
            logits = logits.round()  # ties
        want = [True, True, True]
        for i in range(6):
            others = [float(logits[i, j]) for j in range(5) if j != labels[i]]
            want[rows[i]] &= float(logits[i, labels[i]]) - max(others) > margin
        found = batch.answered(logits, margin).tolist()
        assert found == want
        seen |= set(found)
    assert seen == {True, False}


@pytest.mark.parametrize("kind", ["llama", "gptj", "gpt2"])
def test_greedy_answers(kind: str) -> None:
    lm = small(kind)
    texts = [encode_request(lm, request) for request in REQUESTS]
    found = greedy_answers(lm, texts)
    assert [(t.ids, t.n_prompt) for t in found] == [(r.original.ids, r.text.n_prompt) for r in asked(lm, greedy=True)]
    assert [len(t.target) for t in found] == [len(t.target) for t in texts]
    assert found != texts


# -- the slices and the two sides -------------------------------------------------------------------------


@pytest.mark.parametrize("bias", ["code", "masked", "none"])
def test_reset_puts_earlier_changes_back(bias: Bias) -> None:
    lm = small("gptj")
    slim, generator = Rectifier(lm, bias), torch.Generator().manual_seed(0)

    def shake() -> None:
        for parameter in slim.parameters():
            parameter.data += torch.randn(parameter.shape, generator=generator)

    slim.take(draw(lm, 0))
    shake()
    kept, before = slim.changes(), dense(slim.delta())
    assert all(change.any() for change in before.values())
    shake()
    slim.take(draw(lm, 1))
    shake()
    assert not any(torch.equal(change, before[path]) for path, change in dense(slim.delta()).items())
    slim.reset(kept)
    after = dense(slim.delta())
    assert after.keys() == before.keys()
    assert all(torch.equal(change, before[path]) for path, change in after.items())
    assert all(len(index) > 3 for index in slim.index.values()), "nodes taken since are gone"
    shake()
    slim.reset({})
    assert not any(change.any() for change in dense(slim.delta()).values())


@pytest.mark.parametrize("shared", [False, True])
def test_a_side_that_is_not_trained(shared: bool) -> None:
    """It stands still, or, with one Adam, goes on by its momentum."""
    lm = small()
    requests, selection = asked(lm), draw(lm)
    sides = sides_of(lm, shared=shared)
    optimizer = sides.take(selection)
    course = course_of(lm, sides, requests)

    def now() -> dict[str, dict[Site, Tensor]]:
        found = {"top": values(sides.top), "bottom": values(sides.bottom)}
        if shared:
            nodes = {"top": selection.top, "bottom": selection.bottom}
            for name, own in nodes.items():
                index = sides.top.index
                found[name] = {s: v[torch.searchsorted(index[s], own[s])] for s, v in values(sides.top).items()}
        return found

    moved = []
    for _ in range(4):
        before = now()
        assert step(course, optimizer) is not None
        after = now()
        moved.append([part for part in ("top", "bottom") if not same(before[part], after[part])])
    alone = [["top"], ["bottom"], ["top"], ["bottom"]]
    assert moved == ([["top"], ["top", "bottom"], ["top", "bottom"], ["top", "bottom"]] if shared else alone)


def test_a_new_optimiser_after_forget_alone() -> None:
    lm = small()
    sides = sides_of(lm)
    first = sides.take(draw(lm, 0))
    step(course_of(lm, sides, asked(lm)), first)
    assert first.state
    assert sides.take(draw(lm, 1)) is first
    sides.forget()
    second = sides.take(draw(lm, 2))
    assert second is not first
    assert not second.state
    owned = {id(p) for group in second.param_groups for p in group["params"]}
    assert owned == {id(p) for p in (*sides.top.parameters(), *sides.bottom.parameters())}


@pytest.mark.parametrize("objective", ["alternate", "joint"])
def test_nodes_of_an_earlier_trace_keep_their_changes(objective: Objective) -> None:
    """With an Adam for each trace, only the nodes of the last one are trained."""
    lm = small()
    requests, first, second = asked(lm), draw(lm, 0), draw(lm, 1)
    sides = sides_of(lm)
    go(course_of(lm, sides, requests, passes=2, objective=objective), sides.take(first))
    before = {"top": values(sides.top), "bottom": values(sides.bottom)}
    index = {"top": dict(sides.top.index), "bottom": dict(sides.bottom.index)}
    sides.forget()
    go(course_of(lm, sides, requests, passes=2, objective=objective), sides.take(second))
    wanted = {"top": second.top, "bottom": second.bottom}
    for part, side in (("top", sides.top), ("bottom", sides.bottom)):
        for site, nodes in wanted[part].items():
            moved = side.values[site].detach().clone()
            moved[torch.searchsorted(side.index[site], index[part][site])] -= before[part][site]
            found = side.index[site][moved.abs().amax(1) > 0]
            assert torch.equal(found, nodes), f"{part} of {site.path}: {found.tolist()}, not {nodes.tolist()}"


def test_undo_goes_back_to_begin() -> None:
    lm = small("gptj")
    requests, sides = asked(lm), sides_of(lm, bias="code")
    sides.begin()
    go(course_of(lm, sides, requests[:1]), sides.take(draw(lm, 0)))
    kept = dense(sides.delta())
    sides.begin()
    go(course_of(lm, sides, requests[1:]), sides.take(draw(lm, 1)))
    assert not torch.equal(dense(sides.delta())["transformer.h.0.mlp.fc_in"], kept["transformer.h.0.mlp.fc_in"])
    sides.undo()
    assert all(torch.equal(change, kept[path]) for path, change in dense(sides.delta()).items())


def test_the_delta_is_the_sum_of_both_sides_or_that_of_top() -> None:
    lm = small("gptj")
    sides = sides_of(lm, bias="code")
    go(course_of(lm, sides, asked(lm)), sides.take(draw(lm)))
    top, bottom = dense(sides.top.delta()), dense(sides.bottom.delta())
    both, alone = dense(sides.delta(merge=True)), dense(sides.delta(merge=False))
    for path, change in top.items():
        assert bottom[path].any()
        assert torch.equal(alone[path], change)
        torch.testing.assert_close(both[path], change + bottom[path])


def test_layer_weights_scale_the_learning_rate() -> None:
    """Adam's first step is its learning rate, wherever the gradient is not tiny."""
    lm = small("gptj")
    found = sites(lm)
    weights = {site: 0.25 + 0.5 * i for i, site in enumerate(found)}
    sides = sides_of(lm, lr=1e-3, bias="code")
    step(course_of(lm, sides, asked(lm)), sides.take(draw(lm), weights))
    for site, w in weights.items():
        assert float(sides.top.values[site].detach().abs().max()) == pytest.approx(1e-3 * w, rel=1e-3)
        assert float(sides.top.biases[site].detach().abs().max()) == pytest.approx(1e-3 * w, rel=1e-3)
    assert not any(value.any() for value in values(sides.bottom).values())


# -- losses -----------------------------------------------------------------------------------------------


def both_losses(lm: LM, requests: list[Request], per_edit: bool) -> tuple[Tensor, Tensor]:
    """L(y*) and L(y) of the model as it is."""
    edit = mean_nll(lm, [r.text for r in requests], [r.text.target for r in requests], per_edit)
    return edit, mean_nll(lm, [r.original for r in requests], [r.said for r in requests], per_edit)


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
        top, bottom = sides.top.delta(), sides.bottom.delta()
        with torch.no_grad(), edited(lm.model, *([top, bottom] if theta == "updated" else [top])):
            edit = float(both_losses(lm, requests, per_edit)[0])
        with torch.no_grad(), edited(lm.model, *([top, bottom] if theta == "updated" else [bottom])):
            contrast = LAMBDA * float(both_losses(lm, requests, per_edit)[1])
        want = edit + contrast if objective == "joint" else (edit, contrast)[i % 2]
        assert step(course, optimizer) == pytest.approx(want, abs=2e-5)
        if i > 1:
            assert all(value.any() for side in (sides.top, sides.bottom) for value in values(side).values())
            other = top if theta == "instead" else Delta()
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
    course = course_of(lm, sides, requests, objective="joint")
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
    for side in (sides.top, sides.bottom):
        for site, value in side.values.items():
            grad: Any = modules[site.path].weight.grad
            want = lines_of(site, grad, side.index[site])
            assert value.grad is not None
            torch.testing.assert_close(value.grad, want, atol=1e-5, rtol=1e-3)
            assert want.abs().max() > 1e-3
            total += float(want.square().sum())
    assert course.terms["edit_gradient"] == pytest.approx(total**0.5, rel=1e-4)


@pytest.mark.parametrize("shared", [False, True])
def test_the_gradient_norm_is_that_of_the_trained_side(shared: bool) -> None:
    lm = small()
    requests, selection = asked(lm), draw(lm)
    sides = sides_of(lm, shared=shared)
    optimizer = sides.take(selection)
    course = course_of(lm, sides, requests)
    for name, nodes in ("edit", selection.top), ("contrast", selection.bottom):
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
        moved.append(torch.cat([value.flatten() for value in values(sides.bottom).values()]))
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
    for site, nodes in selection.top.items():
        assert torch.equal(delta.slices[site.path].index, nodes)
        assert delta.slices[site.path].values.any()


# -- stopping ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "turns"), [("alternate", 2), ("joint", 1)])
@pytest.mark.parametrize(("mini_batch", "per_pass"), [(1, 4), (2, 2), (3, 2), (9, 1)])
def test_without_stopping_every_pass_is_made(objective: Objective, turns: int, mini_batch: int, per_pass: int) -> None:
    lm = small()
    sides = sides_of(lm)
    course = course_of(lm, sides, asked(lm), objective=objective, mini_batch=mini_batch)
    assert len(go(course, sides.take(draw(lm)))) == course.most == 3 * per_pass * turns
    assert {own.steps for own in course.progress.values()} == {3}
    assert not course.learned


def test_a_request_that_is_answered_gets_no_step() -> None:
    """Its loss has no part in the step, and the others' shares stay as they are."""
    lm = small()
    requests = [*asked(lm)[:2], *easy(lm, 1)]
    sides = sides_of(lm, lr=1e-9)
    course = course_of(lm, sides, requests, stop=True)
    optimizer = sides.take(draw(lm))
    losses = [float(both_losses(lm, [r], per_edit=True)[0]) for r in requests]
    found = go(course, optimizer)
    assert found[0] == pytest.approx(sum(losses[:2]) / 3, abs=1e-5)
    assert [course.progress[r.case].steps for r in requests] == [3, 3, 0]
    assert [course.progress[r.case].answered for r in requests] == [False, False, True]
    for request, loss in zip(requests, losses, strict=True):
        assert course.progress[request.case].loss == pytest.approx(loss, abs=1e-5)
    assert not course.learned


def test_margin() -> None:
    """A request counts as answered when its narrowest token is ahead by more than the margin."""
    lm = small()
    (request,) = easy(lm, 1)
    logits = logits_alone(lm, request.text)
    rest = logits.scatter(1, torch.tensor(request.text.target)[:, None], -torch.inf)
    gap = float((logits.amax(1) - rest.amax(1)).min())
    for margin, steps in (0.0, 0), (gap * 0.999, 0), (gap * 1.001, 3):
        sides = sides_of(lm, lr=1e-9)
        course = course_of(lm, sides, [request], stop=True, margin=margin)
        assert len(go(course, sides.take(draw(lm)))) == 2 * steps
        assert course.done
        assert course.learned == (steps == 0)
        own = course.progress[request.case]
        assert (own.steps, own.answered) == (steps, True)


@pytest.mark.parametrize("mini_batch", [2, 4])
def test_the_edit_ends_when_all_are_answered(mini_batch: int) -> None:
    lm = small(d_model=32)
    requests, sides = asked(lm), sides_of(lm, lr=2e-2, contrast_lr=2e-3)
    course = course_of(lm, sides, requests, passes=60, stop=True, mini_batch=mini_batch)
    found = go(course, sides.take(draw(lm, nodes=20)))
    assert course.learned
    assert course.done
    assert 4 < len(found) < course.most / 2
    with edited(lm.model, sides.delta()):
        for request in requests:
            assert logits_alone(lm, request.text).argmax(-1).tolist() == list(request.text.target)
    course = course_of(lm, sides_of(lm), easy(lm, 4), stop=True)
    course.sides.take(draw(lm))
    assert course.loss() is None
    assert course.learned
    assert not any(value.any() for value in values(course.sides.top).values())


@pytest.mark.parametrize("seed", range(3))
def test_an_edit_does_not_end_while_a_request_is_open(seed: int) -> None:
    """One request of four that is never answered is trained in every pass, whatever mini-batches it falls into."""
    lm = small()
    requests = [asked(lm)[1], *easy(lm, 3)]
    sides = sides_of(lm, lr=1e-9)
    optimizer = sides.take(draw(lm))
    config = replace(CONFIG, stop=True, mini_batch=2)
    course = Steps(lm, sides, requests, config, 12, torch.Generator().manual_seed(seed))
    go(course, optimizer)
    assert course.progress["2"].steps == 12
    assert not course.learned


@pytest.mark.parametrize("which", ["edit", "contrast"])
def test_a_loss_that_is_not_finite(which: str) -> None:
    lm = small()
    sides = sides_of(lm)
    optimizer = sides.take(draw(lm))
    course = course_of(lm, sides, asked(lm), objective="alternate" if which == "contrast" else "joint")
    assert step(course, optimizer) is not None
    next(iter(sides.top.values.values())).data.fill_(torch.inf)
    with pytest.raises(
        KeditError, match=rf"^the {which} loss is (nan|inf) after \d steps; a smaller model\.train\.lr may"
    ):
        course.loss()


# -- the locality term ------------------------------------------------------------------------------------


def fact(case: str, prompt: str, subject: str | None, target: str, *neighbors: str) -> EditRecord:
    probes = tuple(Probe("neighborhood", text, "x") for text in neighbors)
    return EditRecord(EditRequest(case, prompt, subject, target), probes)


RECORDS = [
    fact("a", "The capital of {} is", "France", "Rome"),
    fact("b", "{} was developed by", "Windows", "Toyota"),
    fact("c", "Who is the president?", None, "Bill Gates"),
]
FACTS = [
    fact("1", "The capital of {} is", "Egypt", "Cairo", "The capital of Japan is", "The capital of FRANCE is"),
    fact("2", "The language of {} is", "rome", "Latin", "It rains in"),
    fact("3", "{} was created by", "Honda Civic", "Honda", "Camry is produced by Toyota in", "The Space Needle is in"),
    fact("4", "The founder of Apple, not bill gates, was", None, "Jobs", "Nobody knows that "),
]
LEFT = {
    "The capital of Egypt is",
    "The capital of Japan is",
    "It rains in",
    "Honda Civic was created by",
    "The Space Needle is in",
    "Nobody knows that",
}


def everything(keeper: Keeper) -> tuple[list[tuple[int, ...]], Any]:
    """All general prompts and their reference (the cases named have none of their own)."""
    return keeper.draw(["no such"], torch.Generator().manual_seed(0))


def keeper_of(lm: LM, records: list[EditRecord] = RECORDS, seed: int = 0, **options: Any) -> Keeper:
    return Keeper(lm, KeepConfig(**({"weight": 1.0, "prompts": 6, "others": 2} | options)), records, FACTS, seed)


def test_kept_prompts_name_nothing_of_the_run() -> None:
    lm = small()
    found, _ = everything(keeper_of(lm, prompts=50))
    assert {tuple(lm.encode(text)) for text in LEFT} == set(found)
    assert len(found) == len(LEFT)
    assert len(everything(keeper_of(lm, prompts=50, facts=4))[0]) == 4


def test_half_of_a_draw_is_of_other_subjects() -> None:
    """The record's prompt with subjects of other records and facts; records without a subject have none."""
    lm = small()
    subjects = ["Windows", "Egypt", "rome", "Honda Civic"]
    own = {tuple(lm.encode(f"The capital of {other} is")) for other in subjects}
    general = {tuple(lm.encode(text)) for text in LEFT}
    for seed in range(8):
        keeper = keeper_of(lm, seed=seed)
        found, reference = keeper.draw(["a"], torch.Generator().manual_seed(seed))
        assert len(found) == len(reference.tokens) == 2 + 4  # two others of at most three
        assert set(found[:2]) <= own
        assert set(found[2:]) <= general
    found, _ = keeper_of(lm).draw(["c"], torch.Generator().manual_seed(0))
    assert set(found) == general
    found, _ = keeper_of(lm, others=0).draw(["a", "b"], torch.Generator().manual_seed(0))
    assert set(found) == general
    assert not keeper_of(lm, RECORDS[2:])._own


def test_draws_can_be_repeated() -> None:
    lm = small()
    one, two = keeper_of(lm), keeper_of(lm)
    draws = [k.draw(["a", "b"], torch.Generator().manual_seed(s)) for s in (3, 4) for k in (one, two)]
    assert draws[0][0] == draws[1][0]
    assert draws[2][0] == draws[3][0]
    assert draws[0][0] != draws[2][0]
    for name in ("tokens", "logp", "rest"):
        assert torch.equal(getattr(draws[0][1], name), getattr(draws[1][1], name))
    others = [keeper_of(lm, seed=seed, others=1).draw(["a"], torch.Generator())[0][:1] for seed in range(8)]
    assert len({ids[0] for ids in others}) > 1


def changed(lm: LM) -> Delta:
    sides = sides_of(lm, lr=5e-2)
    go(course_of(lm, sides, asked(lm)), sides.take(draw(lm)))
    return sides.delta()


@torch.no_grad()
def next_token(lm: LM, texts: Sequence[tuple[int, ...]]) -> Tensor:
    """log p of what follows each text, one at a time, `[n, vocab]` float64."""
    return torch.stack([lm.model(torch.tensor([text])).logits[0, -1].double().log_softmax(-1) for text in texts])


def test_kl_over_all_tokens_is_the_full_one() -> None:
    """With one token as the rest it is the KL itself; with fewer it is that of the coarser distributions."""
    lm = small()
    delta = changed(lm)
    kls = {}
    for top in (599, 5000, 20, 3):
        texts, reference = everything(keeper_of(lm, top=top))
        before = next_token(lm, texts)
        with edited(lm.model, delta):
            after = next_token(lm, texts)
        full = (before.exp() * (before - after)).sum(1).mean()
        kls[top] = float(reference.kl(after.float()))
        assert float(reference.kl(before.float())) == pytest.approx(0, abs=1e-6)
        if top >= 599:
            assert kls[top] == pytest.approx(float(full), rel=1e-4)
            continue
        index = before.topk(top).indices
        coarse = 0.0
        for p, q, own in zip(before.exp(), after.exp(), index, strict=True):
            p, q = (torch.cat([x[own], x.sum()[None] - x[own].sum()]) for x in (p, q))
            coarse += float((p * (p / q).log()).sum()) / len(index)
        assert kls[top] == pytest.approx(coarse, rel=1e-4)
    assert 0 < kls[3] < kls[20] < kls[599]
    assert kls[599] > 0.01


@pytest.mark.parametrize("objective", ["alternate", "joint"])
def test_the_locality_term_reaches_top(objective: Objective) -> None:
    """Its weight times the KL of the drawn prompts is in the loss, and its gradient in that of T+."""
    lm = small()
    requests, sides = asked(lm), sides_of(lm)
    keeper = keeper_of(lm, prompts=3, others=0)
    go(course_of(lm, sides, requests), sides.take(draw(lm)))
    found: dict[float, tuple[float, dict[Site, Tensor]]] = {}
    for keep_weight in (0.0, 7.0):
        generator = torch.Generator().manual_seed(5)
        config = replace(CONFIG, objective=objective, keep=KeepConfig(keep_weight))
        course = Steps(lm, sides, requests, config, 1, generator, keeper if keep_weight else None)
        sides.take(draw(lm)).zero_grad()
        loss = course.loss()
        assert loss is not None
        loss.backward()
        grads = {site: value.grad.clone() for site, value in sides.top.values.items() if value.grad is not None}
        found[keep_weight] = (float(loss.detach()), grads)
    generator = torch.Generator().manual_seed(5)
    torch.randperm(len(requests), generator=generator)  # the pass
    texts, _ = keeper.draw([], generator)
    before = next_token(lm, texts)
    with edited(lm.model, sides.delta()):
        after = next_token(lm, texts)
    kl = float((before.exp() * (before - after)).sum(1).mean())
    coarse = (found[7.0][0] - found[0.0][0]) / 7
    assert 0.5 * kl < coarse <= kl * (1 + 1e-4)

    whole = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.name)
    modules = dict(whole.model.named_modules())
    for path, change in dense(sides.delta()).items():
        weight(modules[path]).add_(change)
        modules[path].weight.requires_grad_(True)  # type: ignore[union-attr]
    new = torch.stack([whole.model(torch.tensor([t])).logits[0, -1].log_softmax(-1) for t in texts])
    kept = before.topk(64).indices
    logp, rest = new.gather(1, kept), torch.log1p(-new.gather(1, kept).exp().sum(1))
    p = before.gather(1, kept).exp().float()
    (-(p * logp).sum(1) - (1 - p.sum(1)) * rest).mean().mul(7).backward()
    for site, one in found[7.0][1].items():
        grad: Any = modules[site.path].weight.grad
        want = lines_of(site, grad, sides.top.index[site])
        torch.testing.assert_close(one - found[0.0][1][site], want, atol=1e-4, rtol=5e-3)
        assert want.abs().max() > 1e-3


@pytest.mark.parametrize("others", [0, 2])
def test_no_prompt_is_left_to_keep(others: int) -> None:
    """All facts name what the run edits: said, and neither a traceback nor a mean of nothing."""
    with pytest.raises(KeditError, match=r"model\.keep"):
        Keeper(
            small(),
            KeepConfig(1.0, others=others),
            [fact("d", "The Nile is in", None, "Egypt")],
            [fact("1", "The capital of {} is", "Egypt", "Cairo")],
            0,
        )


# -- how many nodes, and whose learning rate ---------------------------------------------------------------


def fake(seed: int = 0, width: int = 30, layers: int = 3) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    found = [
        site
        for layer in range(layers)
        for site in (Site(f"{layer}.in", layer, "key", 0, width, 8), Site(f"{layer}.out", layer, "value", 1, width, 8))
    ]
    return {site: torch.rand(width, generator=generator) for site in found}


@pytest.mark.parametrize("seed", range(4))
def test_size_of_is_the_fewest(seed: int) -> None:
    """Against trying every size, and more for more."""
    scores, gains = fake(seed), fake(seed + 10)
    most, sizes = 12, []
    for enough in (1e-6, 0.05, 0.3, 0.5, 0.8, 0.95, 0.999, 1.0):
        total = []
        for n in range(1, most + 1):
            picked = [(sorted(range(30), key=lambda i: -float(s[i]))[:n], gains[site]) for site, s in scores.items()]
            total.append(sum(float(g[i]) ** 2 for nodes, g in picked for i in nodes))
        want = next(n for n, gain in enumerate(total, 1) if gain >= enough * total[-1] * (1 - 1e-12))
        sizes.append(size_of(scores, gains, most, enough))
        assert sizes[-1] == want
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, most)
    assert len(set(sizes)) > 3


@pytest.mark.parametrize("kind", ["llama", "gptj"])
@pytest.mark.parametrize("score", ["zscore", "l2"])
def test_enough_takes_the_fewest_nodes_of_the_dense_gradient(kind: str, score: Any) -> None:
    lm = small(kind)
    batch = labelled(lm, [encode_request(lm, request) for request in REQUESTS], per_edit=True)
    config, generator = TraceConfig(score=score, nodes=10), torch.Generator()
    whole, scores = choose(lm, [batch], config, generator)
    assert scores is not None
    model = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.name)
    model.model.requires_grad_(True)
    texts = [encode_request(lm, request) for request in REQUESTS]
    mean_nll(model, texts, [text.target for text in texts], per_edit=True).backward()
    gains = []
    for site, value in scores.items():
        grad: Any = model.model.get_submodule(site.path).weight.grad
        nodes = lines_of(site, grad, value.argsort(descending=True)[:10])
        gains.append(nodes.double().square().sum(1))
    reached = torch.stack(gains).sum(0).cumsum(0)
    for enough in (0.4, 0.8):
        want = next(n for n in range(1, 11) if reached[n - 1] >= enough * reached[-1])
        fewer, _ = choose(lm, [batch], replace(config, enough=enough), generator)
        for site, nodes in fewer.top.items():
            assert len(nodes) == want < 10
            assert set(nodes.tolist()) == set(scores[site].argsort(descending=True)[:want].tolist())
            assert set(nodes.tolist()) < set(whole.top[site].tolist())
            assert torch.equal(fewer.bottom[site], whole.bottom[site])


def test_enough_of_more_nodes_than_there_are() -> None:
    lm = small()
    batch = labelled(lm, [encode_request(lm, request) for request in REQUESTS])
    with pytest.raises(KeditError, match=r"^model\.trace\.nodes: 41 and 1 at the bottom are more nodes than the 40"):
        choose(lm, [batch], TraceConfig(nodes=41, enough=0.5), torch.Generator())


@pytest.mark.parametrize("nodes", [1, 4, 50])
def test_layer_weights_are_shares_of_the_peaks(nodes: int) -> None:
    scores = fake()
    weights = layer_weights(scores, nodes)
    peaks = {site: sum(sorted(s.tolist())[::-1][:nodes]) / min(nodes, 30) for site, s in scores.items()}
    for kind in ("key", "value"):
        own = [site for site in scores if site.kind == kind]
        assert sum(weights[site] for site in own) / len(own) == pytest.approx(1)
        for site in own:
            assert weights[site] / weights[own[0]] == pytest.approx(peaks[site] / peaks[own[0]])
    nothing = layer_weights({site: torch.zeros(30) for site in scores}, nodes)
    assert set(nothing.values()) == {1.0}


# -- the profile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [30, 150])
def test_profile_is_the_mean_over_traces(width: int) -> None:
    one, two, profile = fake(0, width), fake(1, width), Profile()
    profile.add(one)
    profile.add(two)
    kept = Profile()
    kept.load(copy.deepcopy(profile.state()))
    assert profile.traces == kept.traces == 2
    assert kept.rows() == profile.rows()
    rows = {(row["layer"], row["kind"], row["rank"]): row["score"] for row in profile.rows()}
    assert len(rows) == len(profile.rows()) == 6 * (1 + min(width, 100))
    for site, score in one.items():
        both = [sorted(s[site].tolist(), reverse=True) for s in (one, two)]
        assert rows[site.layer, site.kind, 0] == pytest.approx(sum(map(sum, both)) / (2 * width))
        for rank in range(1, min(width, 100) + 1):
            assert rows[site.layer, site.kind, rank] == pytest.approx((both[0][rank - 1] + both[1][rank - 1]) / 2)
        assert len(score) == width
    kept.add(one)
    assert profile.traces == 2
    assert profile.rows() != kept.rows()
