"""Demonstrations of IKE: edits of other facts, and what they should and should not change, chosen by similarity.

There are three kinds. `copy`: the edited prompt itself says the new target. `update`: a paraphrase says it too.
`retain`: a prompt about something else keeps its answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kedit.evaluation.tfidf import Tfidf
from kedit.model.sentence_encoder import SentenceEncoder
from kedit.request import EditRecord, EditRequest
from kedit.text.prompts import joined

SHARES = {"copy": 4, "update": 12, "retain": 16}  # of 32, as published
KINDS = {"update": ("paraphrase", "rewording"), "retain": ("neighborhood",)}

NEW_FACT = "New Fact: {}\n"
PROMPT = "Prompt: "


@dataclass(frozen=True)
class Demonstration:
    """One of them.

    Attributes:
        kind: `copy`, `update` or `retain`.
        text: As it stands before the edited fact, with the empty line behind it.
    """

    kind: str
    text: str


class DemonstrationPool:
    """Records that demonstrations are made of.

    Args:
        records: Never the edited ones.
        encoder: Compares facts by embeddings instead of words.
    """

    def __init__(self, records: Sequence[EditRecord], encoder: SentenceEncoder | None = None) -> None:
        self.records, self._encoder = list(records), encoder
        self._said = [said(record.request) for record in self.records]

    def choose(self, record: EditRecord, k: int) -> list[Demonstration]:
        """One demonstration of each of the k facts that are most like that of a record, the most like last.

        The kinds are mixed as published, evenly over the ranks. A fact that has no text for its kind gives one of
        another kind. No demonstration answers a probe of the record, and none but of kind `copy` names its subject.
        """
        if not k or not self.records:
            return []
        asked = {record.request.text, *(probe.text for probe in record.probes)}
        order = np.argsort(-self._alike(said(record.request)), kind="stable").tolist()
        near = [self.records[i] for i in order if self.records[i].request.text not in asked][:k]
        name = (record.request.subject or record.request.text).casefold()
        return [_made(other, kind, asked, name) for kind, other in zip(mixture(len(near)), near, strict=True)][::-1]

    def _alike(self, text: str) -> np.ndarray:
        if self._encoder is not None:
            (vector,) = self._encoder.embed([text])
            return (self._embedded @ vector.double().numpy()).round(9)
        tfidf, vectors = self._words
        own = tfidf.vector(text)
        return np.array([sum(weight * v.get(word, 0.0) for word, weight in own.items()) for v in vectors])

    @cached_property
    def _words(self) -> tuple[Tfidf, list[dict[str, float]]]:
        tfidf = Tfidf.fit(self._said)
        return tfidf, [tfidf.vector(text) for text in self._said]

    @cached_property
    def _embedded(self) -> np.ndarray:
        assert self._encoder is not None
        return self._encoder.embed(self._said).double().numpy()


def _made(record: EditRecord, kind: str, asked: Collection[str], name: str) -> Demonstration:
    """A demonstration of a kind; of another kind, if the record has no text for it that may be used."""
    fact = said(record.request)
    for wanted in dict.fromkeys((kind, "update", "retain")):
        texts = [fact] if wanted == "copy" else []
        texts += [
            joined(probe.text, probe.answer, probe.joiner)
            for probe in record.probes
            if probe.kind in KINDS.get(wanted, ()) and probe.text not in asked and name not in probe.text.casefold()
        ]
        if texts:
            return Demonstration(wanted, f"{NEW_FACT.format(fact)}{PROMPT}{texts[0]}\n\n")
    return _made(record, "copy", asked, name)


def said(request: EditRequest) -> str:
    """The prompt with its new target."""
    return request.stating(request.target_new)


def mixture(k: int) -> list[str]:
    """The kinds of k demonstrations, in the published shares, each spread as evenly as can be."""
    total, given = sum(SHARES.values()), Counter[str]()
    found: list[str] = []
    for n in range(1, k + 1):
        kind = max(SHARES, key=lambda name: SHARES[name] * n / total - given[name])
        given[kind] += 1
        found.append(kind)
    return found


def unrelated(records: Iterable[EditRecord], edited: Sequence[EditRecord]) -> list[EditRecord]:
    """The records that share neither prompt nor subject with an edited one."""
    prompts = {record.request.text for record in edited}
    subjects = {record.request.subject.casefold() for record in edited if record.request.subject}
    return [
        record
        for record in records
        if record.request.text not in prompts and (record.request.subject or "").casefold() not in subjects
    ]
