"""The pool of reference triples: which prompts should be continued with a given object, by relation.

Built from a data set's own records or a user's knowledge base (specs/steam.md 6). Nothing here knows a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from kedit.request import EditRecord
from kedit.text.prompts import Joiner, trimmed

_ARTICLES = ("the ", "a ", "an ")


@dataclass(frozen=True, slots=True)
class Reference:
    """One fact that the model may know: a prompt whose continuation is `answer`.

    Attributes:
        text: The prompt, complete.
        answer: The object, without a leading space.
        relation: Name of the relation; None where the source does not say.
        subject: The subject, where the source names it.
        answer_id: Id of the object (e.g. of Wikidata), where the source has one.
        case: The record whose attribute prompt this is; None otherwise.
        joiner: What stands between the prompt and the object, see `kedit.text.prompts.between`.
    """

    text: str
    answer: str
    relation: str | None = None
    subject: str | None = None
    answer_id: str | None = None
    case: str | None = None
    joiner: Joiner = "auto"


def _key(reference: Reference) -> tuple[str | None, ...]:
    """What tells it from others; the joiner only where it is not the usual one."""
    parts = astuple(reference)
    return parts[:-1] if reference.joiner == "auto" else parts


def normal(answer: str) -> str:
    """An object's name for comparing: case and runs of spaces do not count."""
    return " ".join(answer.split()).casefold()


def loose(answer: str) -> str:
    """`normal`, and neither an article before it nor punctuation after it counts."""
    name = normal(answer).rstrip(".,;:!?")
    for article in _ARTICLES:
        name = name.removeprefix(article)
    return name


class Pool:
    """References, found by their object.

    Args:
        references: In any order; of equal texts the first stands.
    """

    def __init__(self, references: Iterable[Reference]) -> None:
        by_text: dict[tuple[str, str], Reference] = {}
        for reference in references:
            by_text.setdefault((reference.text, normal(reference.answer)), reference)
        self._by_text = by_text
        self.references = tuple(by_text.values())
        self._by_id: dict[str, list[Reference]] = {}
        self._by_name: dict[str, list[Reference]] = {}
        self._by_loose: dict[str, list[Reference]] = {}
        for reference in self.references:
            if reference.answer_id is not None:
                self._by_id.setdefault(reference.answer_id, []).append(reference)
            self._by_name.setdefault(normal(reference.answer), []).append(reference)
            self._by_loose.setdefault(loose(reference.answer), []).append(reference)

    def __len__(self) -> int:
        return len(self.references)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the references."""
        lines = sorted(json.dumps(_key(reference)) for reference in self.references)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def find(self, text: str, answer: str) -> Reference:
        """The reference with this prompt and this object."""
        return self._by_text[text, normal(answer)]

    def lookup(self, answer: str, answer_id: str | None = None) -> list[Reference]:
        """References with exactly this object: by its id where it has one, and by its name where they have none."""
        named = self._by_name.get(normal(answer), [])
        if answer_id is None:
            return list(named)
        return [*self._by_id.get(answer_id, []), *(r for r in named if r.answer_id is None)]

    def alike(self, answer: str) -> list[Reference]:
        """References whose object has the same name but for articles and punctuation, whatever their id."""
        return list(self._by_loose.get(loose(answer), []))


def references_of(records: Sequence[EditRecord]) -> list[Reference]:
    """What a data set's records say of the world before the edits (specs/steam.md 6, 1 to 3).

    The request with its true object; neighbours that share it; attribute prompts, whose object is the new one.
    Paraphrases are left out: those of CounterFact begin with unrelated text, and they are scored.
    """
    found: list[Reference] = []
    for record in records:
        r, meta = record.request, record.meta
        true_id, new_id = meta.get("target_true_id"), meta.get("target_new_id")
        if r.target_true is not None:
            found.append(Reference(r.text, r.target_true, r.relation, r.subject, true_id, joiner=r.joiner))
            for probe in record.probes:
                if probe.kind == "neighborhood" and probe.answer == r.target_true:
                    found.append(Reference(probe.text, r.target_true, r.relation, None, true_id, joiner=r.joiner))
        for text in meta.get("attribute_prompts") or ():
            found.append(Reference(trimmed(text), r.target_new, r.relation, None, new_id, r.case_id, r.joiner))
    return found
