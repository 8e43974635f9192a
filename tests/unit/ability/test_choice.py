"""kedit's own questions: what ships, and the scores against a plain loop, one option at a time."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from kedit.ability.choice import Question, choice_scores, questions
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.model.architecture import weight
from kedit.model.lm import LM
from tests.support.tiny_models import tiny_lm


def naive(lm: LM, question: Question, option: str) -> float:
    """The log-likelihood of an option, by the model's own forward."""
    prompt, whole = lm.encode(question.prompt), lm.encode(f"{question.prompt} {option}")
    assert whole[: len(prompt)] == prompt
    with torch.no_grad():
        logits = lm.model(torch.tensor([whole], device=lm.device)).logits[0].float().log_softmax(-1)
    return sum(logits[at - 1, whole[at]].item() for at in range(len(prompt), len(whole)))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_plain_loop(kind: str) -> None:
    lm, asked = tiny_lm(kind), questions(24)
    plain, normed = [], []
    for question in asked:
        values = [naive(lm, question, option) for option in question.options]
        plain.append(float(values.index(max(values)) == question.answer))
        shares = [value / len(option) for value, option in zip(values, question.options, strict=True)]
        normed.append(float(shares.index(max(shares)) == question.answer))
    ((acc, acc_norm),) = choice_scores(lm, asked)
    assert (acc.items, acc_norm.items) == (tuple(plain), tuple(normed))
    assert (acc.metric, acc.n, acc.value) == ("acc", 24, sum(plain) / 24)
    assert 0 < acc.value < 1
    assert acc.items != acc_norm.items
    assert acc.stderr == pytest.approx((acc.value * (1 - acc.value) / 23) ** 0.5)


def test_lanes_are_edited_models() -> None:
    lm, asked = tiny_lm("llama"), questions(24)
    path = lm.arch.path("mlp_out", 1)
    rows, columns = weight(lm.model.get_submodule(path)).shape
    torch.manual_seed(0)
    deltas = [Delta({path: Factors(torch.randn(rows, 1), torch.randn(1, columns))}) for _ in range(2)]
    lanes = choice_scores(lm, asked, [1, -1, 0], BatchedDeltas(lm.model, deltas))
    assert lanes[1] == choice_scores(lm, asked)[0]
    assert lanes[0][0].items != lanes[1][0].items
    for lane, delta in ((0, deltas[1]), (2, deltas[0])):
        with edited(lm.model, delta):
            assert choice_scores(lm, asked)[0] == lanes[lane]


def test_a_model_that_finds_all_alike_is_never_right() -> None:
    lm = tiny_lm("llama")
    same = Question("same-0", "same", "Which one?", ("left", "left", "left", "left"), 0)
    assert choice_scores(lm, [same])[0][0].value == 0


def test_what_ships() -> None:
    asked = questions()
    assert len(asked) == len({question.text for question in asked}) == len({question.name for question in asked}) == 80
    assert set(Counter(question.subject for question in asked).values()) == {10}
    assert len({question.subject for question in questions(8)}) == 8
    for question in asked:
        assert len(set(question.options)) == 4, question
        assert 0 <= question.answer < 4
        assert all(option == option.strip() and option for option in question.options)
        assert question.text.endswith(("?", '"'))
    places = Counter(question.answer for question in asked)
    assert min(places.values()) >= 10  # to say always the same one is worth no more than chance
