"""When PAC's steps end: requests that are answered, by a margin or not at all, and a loss that is not finite."""

from __future__ import annotations

import pytest
import torch

from kedit.delta.apply import edited
from kedit.errors import KeditError
from kedit.methods.pac import Labelled, Objective, Request, TrainableNodes
from kedit.model.lm import LM
from tests.support.pac_cases import (
    asked,
    both_losses,
    course_of,
    draw,
    easy,
    go,
    logits_alone,
    same,
    sides_of,
    small,
    step,
    values,
)


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
    assert not any(value.any() for value in values(course.sides.critical).values())


@pytest.mark.parametrize("seed", range(3))
def test_an_edit_does_not_end_while_a_request_is_open(seed: int) -> None:
    """One request of four that is never answered is trained in every pass, whatever mini-batches it falls into."""
    lm = small()
    requests = [asked(lm)[1], *easy(lm, 3)]
    sides = sides_of(lm, lr=1e-9)
    optimizer = sides.take(draw(lm))
    generator = torch.Generator().manual_seed(seed)
    course = course_of(lm, sides, requests, 12, stop=True, mini_batch=2, generator=generator)
    go(course, optimizer)
    assert course.progress["2"].steps == 12
    assert not course.learned


@pytest.mark.parametrize("which", ["edit", "contrast"])
def test_a_loss_that_is_not_finite(which: str) -> None:
    lm = small()
    sides = sides_of(lm)
    optimizer = sides.take(draw(lm))
    objective = "alternate" if which == "contrast" else "joint"
    course = course_of(lm, sides, asked(lm), objective=objective, best=False, rollback=0.0)
    assert step(course, optimizer) is not None
    next(iter(sides.critical.values.values())).data.fill_(torch.inf)
    with pytest.raises(
        KeditError, match=rf"^the {which} loss is (nan|inf) after \d steps; a smaller model\.train\.lr may"
    ):
        course.loss()


def test_weights_that_are_not_finite_after_a_pass() -> None:
    lm = small()
    sides = sides_of(lm)
    optimizer = sides.take(draw(lm))
    course = course_of(lm, sides, asked(lm), objective="joint", mini_batch=len(asked(lm)))
    assert step(course, optimizer) is not None
    next(iter(sides.critical.values.values())).data.fill_(torch.inf)
    with pytest.raises(KeditError, match=r"^the weights are not finite after the last step; a smaller model"):
        course.loss()


def test_an_earlier_request_trains_while_it_is_open() -> None:
    """The loss is the new request's mean plus that of the open earlier ones; answered ones add nothing."""
    lm = small()
    new, old, known = asked(lm)[0], asked(lm)[1], easy(lm, 3)[2]
    sides = sides_of(lm, contrast_lr=None)
    optimizer = sides.take(draw(lm))
    course = course_of(lm, sides, [new], mini_batch=1, stop=True, rehearse=2, earlier=[old, known])
    expected = sum(both_losses(lm, [request], True)[0] for request in (new, old))
    assert step(course, optimizer) == pytest.approx(float(expected), rel=1e-5)
    assert course.progress.keys() == {new.case}
    alone = course_of(lm, sides_of(lm, contrast_lr=None), [new], mini_batch=1, stop=True, earlier=[old, known])
    alone.sides.take(draw(lm))
    loss = alone.loss()
    assert loss is not None
    assert float(loss.detach()) == pytest.approx(float(both_losses(lm, [new], True)[0]), rel=1e-5)


def test_an_edit_goes_on_until_what_it_rehearses_is_answered() -> None:
    lm = small()
    old, known = asked(lm)[0], easy(lm, 2)[1:]
    sides = sides_of(lm, contrast_lr=None)
    course = course_of(lm, sides, known, 300, mini_batch=1, stop=True, rehearse=1, earlier=[old])
    assert go(course, sides.take(draw(lm, nodes=12)))
    assert course.learned
    with edited(lm.model, sides.delta()), torch.no_grad():
        for request in (old, *known):
            assert logits_alone(lm, request.text).argmax(-1).tolist() == list(request.text.target)


@pytest.mark.parametrize("seed", range(3))
def test_best_ends_with_the_pass_after_which_most_were_answered(seed: int) -> None:
    """Against looking after every pass: the same steps, and in the end the changes of the best of these moments."""
    passes, rate = 12, 0.03
    runs = []
    for best in (True, False):
        lm = small(d_model=32)
        sides = sides_of(lm, lr=rate, contrast_lr=rate / 10)
        requests, generator = asked(lm), torch.Generator().manual_seed(seed)
        course = course_of(
            lm, sides, requests, passes, stop=False, best=best, rollback=0.0, mini_batch=2, generator=generator
        )
        optimizer = sides.take(draw(lm, nodes=20))
        moments = []
        for number in range(1, 2 * 2 * passes + 1):  # two mini-batches, a step of T+ and one of T- each
            assert step(course, optimizer) is not None
            if number == 4 * 8:  # the last four passes undo what is there
                for group in optimizer.param_groups:
                    group["lr"] = 3.0
            if number % 4 == 0:
                moments.append((values(sides.critical), values(sides.contrast), ranked(lm, sides, requests)))
        course.finish()
        runs.append((moments, values(sides.critical), values(sides.contrast)))
    (moments, critical, contrast), (plain, last_top, _) = runs
    assert all(same(one[0], other[0]) for one, other in zip(moments, plain, strict=True))
    assert same(last_top, plain[-1][0])
    ranks = [rank for *_, rank in moments]
    chosen = ranks.index(max(ranks))
    assert same(critical, moments[chosen][0])
    assert same(contrast, moments[chosen][1])
    assert chosen < passes - 4
    assert ranks[chosen][0] > ranks[-1][0]


def ranked(lm: LM, sides: TrainableNodes, requests: list[Request]) -> tuple[int, float]:
    """How many of the requests are answered, and less their losses."""
    with edited(lm.model, sides.delta()), torch.no_grad():
        base_labels = [
            logits_alone(lm, request.text).argmax(-1).tolist() == list(request.text.target) for request in requests
        ]
        losses = [float(both_losses(lm, [request], True)[0]) for request in requests]
    return sum(base_labels), -sum(losses)


def test_best_puts_nothing_back_where_the_last_pass_is_the_best() -> None:
    lm = small(d_model=32)
    sides = sides_of(lm, lr=2e-2, contrast_lr=2e-3)
    course = course_of(lm, sides, asked(lm), passes=60, stop=True, best=True, mini_batch=2)
    go(course, sides.take(draw(lm, nodes=20)))
    assert course.learned
    kept = values(sides.critical)
    course.finish()
    assert same(values(sides.critical), kept)


@pytest.mark.parametrize("rollback", [0.0, 0.75])
def test_a_pass_that_undid_too_much_is_gone_back_from(rollback: float) -> None:
    """To the best pass, bit for bit, at half the rates, with Adam as new; 0: it goes on from the ruins."""
    lm = small(d_model=32)
    sides = sides_of(lm, lr=2e-2, contrast_lr=2e-3)
    requests = asked(lm)
    course = course_of(lm, sides, requests, passes=60, stop=False, rollback=rollback, mini_batch=len(requests))
    optimizer = sides.take(draw(lm, nodes=20))
    best, kept = (0, 0.0), values(sides.critical)
    while best[0] < len(requests):
        assert step(course, optimizer) is not None  # T+
        assert step(course, optimizer) is not None  # T-: the pass is over
        if (rank := ranked(lm, sides, requests)) > best or not best[0]:
            best, kept = rank, values(sides.critical)
    assert course.loss() is not None  # looks first
    rates = [group["lr"] for group in optimizer.param_groups]
    with torch.no_grad():
        for value in sides.critical.values.values():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    ruined = values(sides.critical)
    assert ranked(lm, sides, requests)[0] < 0.75 * best[0]
    assert course.loss() is not None  # T-, still of that pass
    assert course.loss() is not None  # looks first
    assert same(values(sides.critical), kept if rollback else ruined)
    assert [group["lr"] for group in optimizer.param_groups] == [rate * (0.5 if rollback else 1) for rate in rates]
    assert bool(optimizer.state) is not bool(rollback)
    assert {own.rollbacks for own in course.progress.values()} == {1 if rollback else 0}
    assert not course.learned
