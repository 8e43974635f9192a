"""`kedit_choice`: 80 multiple-choice questions of kedit's own, answered by the likelihood of the options.

The questions ship with kedit (`questions.jsonl`, written by its authors): ten each of nature, physics, geography,
history, language, everyday life, arithmetic and reasoning. No option is shown to the model. It is asked the question,
and each option is scored as its continuation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from kedit.ability.scores import Score, mean_score
from kedit.delta.prompts import prompt_for
from kedit.forward.teacher_forcing import Progress, Span, read
from kedit.model.tokenization import encode

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas
    from kedit.model.lm import LM

NAME = "kedit_choice"


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        name: `arithmetic-3`.
        subject: `arithmetic`.
        text: The question.
        options: Four answers.
        answer: Index of the right one.
    """

    name: str
    subject: str
    text: str
    options: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> str:
        """What the model is asked."""
        return f"Question: {self.text}\nAnswer:"


def questions(limit: int | None = None) -> list[Question]:
    """The questions that ship with kedit, the subjects in turn.

    Args:
        limit: The first so many; None: all 80.
    """
    text = (files("kedit.ability") / "questions.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    return [
        Question(one["id"], one["subject"], one["question"], tuple(one["options"]), one["answer"])
        for one in found[:limit]
    ]


def choice_scores(
    lm: LM,
    asked: Sequence[Question],
    lanes: Sequence[int] = (-1,),
    bank: BatchedDeltas | None = None,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    shared: bool = False,
) -> list[tuple[Score, ...]]:
    """How many questions each edited model answers rightly.

    `acc` takes the option of the highest log-likelihood, `acc_norm` that of the highest log-likelihood per character,
    so that long options are not at a disadvantage. The right option must be above all others: a model that finds
    all alike (or answers NaN) knows nothing.

    Args:
        lm: Model and tokenizer, with the weights that are to be measured.
        asked: The questions, at least one.
        lanes: The lanes, -1 for the weights as they are.
        bank: The deltas that `lanes` index.
        batch_tokens: Bound of one batch in padded tokens; None: by device.
        progress: Called after every batch.
        shared: All processes of the run ask for these: each runs a part, and all get all.

    Returns:
        Per lane `acc` and `acc_norm`.

    Raises:
        KeditError: A question does not fit into the model's context.
    """
    spans = [
        _span(lm, question, option, lane, bank)
        for lane in dict.fromkeys(lanes)
        for question in asked
        for option in question.options
    ]
    readings = iter(read(lm, spans, bank, batch_tokens, progress, shared))
    found = {}
    for lane in dict.fromkeys(lanes):
        plain, normed = [], []
        for question in asked:
            sums = [-sum(next(readings)[0]) for _ in question.options]
            plain.append(_is_best(sums, question.answer))
            normed.append(
                _is_best([s / len(text) for s, text in zip(sums, question.options, strict=True)], question.answer)
            )
        found[lane] = (mean_score(NAME, "acc", plain), mean_score(NAME, "acc_norm", normed))
    return [found[lane] for lane in lanes]


def _span(lm: LM, question: Question, option: str, lane: int, bank: BatchedDeltas | None) -> Span:
    room = 1 + max(len(text.encode()) for text in question.options)
    prompt = prompt_for(lm, bank, lane, question.prompt, room)
    tokens = encode(lm, prompt, option, f"question {question.name}", "space")
    return Span(lane, tokens.ids[:-1], tokens.target)


def _is_best(values: Sequence[float], answer: int) -> float:
    return float(all(values[answer] > value for i, value in enumerate(values) if i != answer))
