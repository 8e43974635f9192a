"""Which texts are run for an edit's adapter, and what their tokens are to it (specs/rep.md 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from kedit.data.robust_queries import phrase
from kedit.methods.rep.config import AdapterConfig
from kedit.methods.rep.phrases import drawn
from kedit.model.lm import LM
from kedit.model.tokenization import Tokens, encode_subject
from kedit.request import EditRecord
from kedit.text.prompts import escaped

Role = Literal["original", "variant", "held", "long", "answer", "other", "tempting"]
NEGATIVE: tuple[Role, ...] = ("answer", "other", "tempting")
"""Roles whose name's last token is not a positive."""

FOREIGN: tuple[Role, ...] = ("other", "tempting")
"""Roles of another subject's name."""

LONG = 64  # tokens of a long text that are negatives


@dataclass(frozen=True)
class Row:
    """One text to run, and which of its tokens are what.

    Attributes:
        ids: Its tokens, no further than they are needed.
        subject_last: The name's last token.
        outside: Tokens that are negatives.
        hard_negatives: Tokens that are near negatives.
        role: original: the subject, in a context. variant, held: another name, which trains or calibrates. long:
            after a long text. answer: with an answer after the prompt. other: another subject in the prompt.
            tempting: another subject before one of the phrases that train, or a sibling of the subject.
    """

    ids: tuple[int, ...]
    subject_last: int
    outside: tuple[int, ...]
    hard_negatives: tuple[int, ...]
    role: Role


class _Writer:
    """Makes the rows of one record."""

    def __init__(self, lm: LM, record: EditRecord, random: Random) -> None:
        self.lm, self.request, self.random = lm, record.request, random

    def row(self, name: str, context: str, role: Role, answer: str | None = None) -> Row:
        """`name` in the prompt behind a context; only bare prompts are run to their end."""
        r = self.request
        t = encode_subject(self.lm, r.prompt, name, answer, context, r.name, r.joiner)
        whole = context == "{}" and role != "tempting"
        ids = t.ids if whole else t.ids[: t.subject_last + 1]
        return Row(ids, t.subject_last, self._outside(t, role, whole), _near(t, role, len(ids), whole), role)

    def phrase(self, template: str, subject: str, role: Role) -> Row:
        """A phrase around `subject` as the name."""
        return self.row(phrase(replace(self.request, subject=subject), template), "{}", role)

    def _outside(self, t: Tokens, role: Role, whole: bool) -> tuple[int, ...]:
        """Tokens of a bare prompt that are not the name's, all where it is another subject's; some of a long text."""
        if role == "long":
            return tuple(sorted(self.random.sample(range(t.subject_first), min(LONG, t.subject_first))))
        inside = () if role == "other" else range(t.subject_first, t.subject_last + 1)
        return tuple(i for i in range(t.n_prompt) if i not in inside) if whole else ()


def _near(t: Tokens, role: Role, n: int, whole: bool) -> tuple[int, ...]:
    """The subject's pieces before its last one, the answers' tokens, all of another subject's phrase."""
    if role == "tempting":
        return tuple(range(t.subject_first, t.subject_last + 1))
    pieces = range(t.subject_first, t.subject_last) if role == "original" and whole else ()
    return (*pieces, *range(t.n_prompt, n))


def plan(
    lm: LM, config: AdapterConfig, contexts: Sequence[str], subjects: Sequence[str], record: EditRecord
) -> list[Row]:
    """The rows of a record, the bare prompt first.

    Args:
        lm: The model: its tokenizer.
        config: How many of what.
        contexts: Context templates, the bare `"{}"` first.
        subjects: Other subjects; those in the record's own probes are passed over.
        record: With its variants.
    """
    request, random = record.request, Random(f"rep-{record.request.case_id}")
    own = request.named("REP")
    write = _Writer(lm, record, random)
    rows = [write.row(own, context, "original") for context in contexts]
    if config.negatives:
        answers = [answer for answer in (request.target_new, request.target_true) if answer is not None]
        rows += [write.row(own, "{}", "answer", answer) for answer in answers]
    variants = record.variants
    if variants is None:
        return rows
    names = [*variants.paraphrase_train, *variants.shuffle_train]
    held = set(random.sample(names, int(config.held_back * len(names))))
    more = len(contexts) - 1 if config.contexts < 0 else min(config.contexts, len(contexts) - 1)
    for name in names:
        for context in ["{}", *random.sample(contexts[1:], more)]:
            rows.append(write.row(name, context, "held" if name in held else "variant"))
    for text in variants.long_train[: config.long_contexts]:
        rows.append(write.row(own, escaped(text) + " {}", "long"))
    asked = " ".join(probe.text for probe in record.probes)
    others = [subject for subject in subjects if subject not in asked and subject != own]
    rows += [write.row(name, "{}", "other") for name in random.sample(others, min(config.others, len(others)))]
    for template in drawn(config.phrases, random):
        rows.append(write.phrase(template, own, "variant"))
        tempting = random.sample(others, min(config.phrase_others, len(others)))
        rows += [write.phrase(template, name, "tempting") for name in tempting]
    confusable = confusable_names(own, others, config.confusable_names, random)
    rows += [write.row(name, "{}", "tempting") for name in confusable
             if name not in names]  # fmt: skip
    return rows


def confusable_names(subject: str, others: Sequence[str], count: int, random: Random) -> list[str]:
    """Names that begin like the subject and end like another: "Nokia N85" and "Lake Geneva" give "Nokia Geneva".

    What stands for the subject's own kin, which every neighbour prompt may name. None for a subject of one word.
    """
    words = subject.split()
    if len(words) < 2:
        return []
    found = []
    for other in random.sample(others, min(count, len(others))):
        cut, tail = random.randint(1, len(words) - 1), other.split()
        found.append(" ".join([*words[:cut], *tail[-random.randint(1, len(tail)) :]]))
    return found
