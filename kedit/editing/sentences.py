"""What a model continues prompts with, and how probable two answers are there: the sentences that a user reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Literal

from kedit.evaluation.score import EvalConfig, score
from kedit.forward.greedy import greedy, prompt_ids
from kedit.model.chat import REPEAT
from kedit.model.lm import LM
from kedit.model.tokenization import TooLong
from kedit.request import Probe
from kedit.text.lines import first_clause
from kedit.text.matching import after_prompt, begins_with
from kedit.text.prompts import Joiner

Kind = Literal["request", "paraphrase", "neighbour", "question"]

TOKENS = 12
"""New tokens of a continuation at most."""

WORDS = 5
"""Words of an answer at most."""

_SENTENCE = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s+[^\sa-z]|\s*$)")


@dataclass(frozen=True)
class Asked:
    """A prompt to be continued.

    Attributes:
        prompt: The whole of it.
        kind: `request`, `paraphrase`, `neighbour` or `question` (one of the user's).
        case_id: Of the request that it belongs to; None: of all.
        new: The new target, whose probability is looked up.
        joiner: What stands between the prompt and an answer.
    """

    prompt: str
    kind: Kind
    case_id: str | None = None
    new: str | None = None
    joiner: Joiner = "auto"


@dataclass(frozen=True)
class Sentence:
    """What a model says to a prompt.

    Attributes:
        prompt: The prompt.
        kind: `request`, `paraphrase`, `neighbour` or `question` (one of the user's).
        text: The most probable continuation, to the end of the sentence or of the line, 12 tokens at most.
        new: The new target; None where the prompt belongs to no single request.
        old: The answer of before: the true target where it was given, else what the unedited model says.
        p_new: Probability of the new target as the continuation, all its tokens together.
        p_old: The same of the old answer.
        case_id: Of the request that it belongs to.
    """

    prompt: str
    kind: Kind
    text: str
    new: str | None = None
    old: str | None = None
    p_new: float | None = None
    p_old: float | None = None
    case_id: str | None = None

    @property
    def answer(self) -> str:
        """The beginning of the text that answers: to the first punctuation mark, five words at most."""
        return answer_of(self.text)

    @property
    def says_new(self) -> bool:
        """Whether the text begins with the new target."""
        return self.new is not None and begins_with(self.text, (self.new,))

    def __str__(self) -> str:
        return f"{self.prompt} -> {self.text.strip()}"


def answer_of(text: str) -> str:
    """What of a continuation is the answer; empty where it has no word."""
    clause = first_clause(text.strip())
    return " ".join(clause.split()[:WORDS]) if any(char.isalnum() for char in clause) else ""


def say(
    lm: LM, asked: Sequence[Asked], before: Sequence[Sentence] | None = None, true: Mapping[str, str] | None = None
) -> list[Sentence]:
    """What the model, as it is, says to each prompt.

    Args:
        lm: The model, with what is written into it.
        asked: The prompts.
        before: What the unedited model said to them, whose old answers are looked up again; None: this is it.
        true: True targets by case id, where the user gave them.

    Raises:
        TooLong: A prompt that does not fit into the model's context; names it.
    """
    texts = [to_sentence(text) for text in _continued(lm, [one.prompt for one in asked])]
    if before is None:
        old = [_old(one, text, true or {}) for one, text in zip(asked, texts, strict=True)]
    else:
        old = [sentence.old for sentence in before]
    p_new = _probabilities(lm, asked, [one.new for one in asked])
    p_old = _probabilities(lm, asked, old)
    return [
        Sentence(one.prompt, one.kind, text, one.new, was, new_p, old_p, one.case_id)
        for one, text, was, new_p, old_p in zip(asked, texts, old, p_new, p_old, strict=True)
    ]


def _continued(lm: LM, prompts: Sequence[str]) -> list[str]:
    """Greedy continuations; in a chat, what is said once the prompt has been repeated, where the model does that."""
    if lm.chat is None:
        return greedy(lm, prompts, TOKENS)
    return [
        after_prompt(text, prompt) for prompt, text in zip(prompts, greedy(lm, prompts, TOKENS + REPEAT), strict=True)
    ]


def fits(lm: LM, prompt: str) -> bool:
    """Whether a prompt leaves room for what is asked."""
    try:
        return bool(prompt_ids(lm, prompt, TOKENS))
    except TooLong:
        return False


def to_sentence(text: str) -> str:
    """A continuation to the end of its sentence or line, without the mark that ends it where words stand before it.

    Lines that are empty are passed over: many models begin a new one behind a question.
    """
    text = text.lstrip("\r\n").partition("\n")[0]
    found = _SENTENCE.search(text)
    return text if found is None or not text[: found.start()].strip() else text[: found.start()]


def _old(one: Asked, text: str, true: Mapping[str, str]) -> str | None:
    """The answer of before: the true target, of the request and its paraphrases, or what was said."""
    known = true.get(one.case_id or "") if one.kind in ("request", "paraphrase") else None
    return known or answer_of(text) or None


def _probabilities(lm: LM, asked: Sequence[Asked], answers: Sequence[str | None]) -> list[float | None]:
    """Of each answer, all its tokens together; None where there is none."""
    chosen = [i for i, answer in enumerate(answers) if answer]
    probes = [Probe(asked[i].kind, asked[i].prompt, str(answers[i]), joiner=asked[i].joiner) for i in chosen]
    found: list[float | None] = [None] * len(asked)
    for i, one in zip(chosen, score(lm, probes, config=EvalConfig(generate=[])), strict=True):
        found[i] = exp(-one.nll_answer * len(one.top1))
    return found
