"""What is edited and what is measured: `EditRequest`, `Probe`, `Variants`, `EditRecord`.

Readers of every file format yield `EditRecord`; nothing after them knows the formats. Values are checked
here, once, so that a bad record is named before any model is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kedit.errors import KeditError, shown
from kedit.text.prompts import Joiner, between, fill, joined, literal, slots


def shown_id(case_id: str) -> str:
    """A case id for a message: as it is, but on one line and quoted where it is long or odd."""
    return case_id if case_id.isprintable() and len(case_id) <= 80 else shown(case_id)


@dataclass(frozen=True, slots=True)
class EditRequest:
    """One fact to change.

    Args:
        case_id: Name of the record, unique in its file; every message and result line carries it.
        prompt: Template with exactly one `{}` where the subject goes, e.g. `"The capital of {} is"`. Without a
            subject the whole prompt, which has no `{}`. Braces that mean themselves are written `{{}}`.
        subject: Text that fills the template; None where the data does not name it (ZsRE).
        target_new: The new object, without a leading space.
        target_true: The object before the edit, where the data knows it.
        relation: Name of the relation (any string, e.g. `"P36"`), where the data knows it.
        joiner: What stands between the prompt and its target, see `kedit.text.prompts.between`.

    Raises:
        KeditError: A template without exactly one `{}`, an empty subject or target, or a target equal
            to the true one. Without a subject: a prompt that has a `{}`, or is empty.
    """

    case_id: str
    prompt: str
    subject: str | None
    target_new: str
    target_true: str | None = None
    relation: str | None = None
    joiner: Joiner = "auto"

    def __post_init__(self) -> None:
        found = slots(self.prompt)
        if self.subject is None:
            if found:
                raise KeditError(
                    f"{self.name}: the prompt {shown(self.prompt)} has a '{{}}' and no subject to put there; "
                    "name the subject, or write '{{}}' for braces that mean themselves"
                )
            if not self.prompt.strip():
                raise KeditError(f"{self.name}: the prompt is empty")
        elif found != 1:
            raise KeditError(
                f"{self.name}: the prompt {shown(self.prompt)} has {found} '{{}}'; it needs exactly one, "
                "where the subject goes ('{{}}' stands for braces that mean themselves)"
            )
        elif not self.subject.strip():
            raise KeditError(f"{self.name}: the subject is empty")
        if not self.target_new.strip():
            raise KeditError(f"{self.name}: target_new is empty; say what the fact should become")
        if self.target_true is not None and self.target_true.strip() == self.target_new.strip():
            raise KeditError(
                f"{self.name}: target_new equals the true target {shown(self.target_true)}; nothing to edit"
            )

    @property
    def name(self) -> str:
        """What messages call it: `record ID`."""
        return f"record {shown_id(self.case_id)}"

    @property
    def text(self) -> str:
        """The prompt with its subject filled in."""
        return self.about(self.subject or "")

    def about(self, subject: str) -> str:
        """The prompt with another subject, or another name of its own, filled in."""
        return literal(self.prompt) if self.subject is None else fill(self.prompt, subject)

    @property
    def joint(self) -> Joiner:
        """What stands between the prompt and the new target: `space` or `none`."""
        return "space" if between(self.text, self.target_new, self.joiner) else "none"

    def stating(self, answer: str) -> str:
        """The prompt and an answer as one text."""
        return joined(self.text, answer, self.joiner)

    def named(self, who: str = "this method") -> str:
        """The subject, for those who cannot do without one.

        Args:
            who: What cannot, for the message, e.g. `"ROME"`.

        Raises:
            KeditError: The request names no subject.
        """
        if self.subject is None:
            raise KeditError(f"{self.name} names no subject, which {who} needs; use data that does (docs/data.md)")
        return self.subject


@dataclass(frozen=True, slots=True)
class Condition:
    """A prompt that the unedited model must answer for a probe to be asked (RippleEdits).

    Args:
        text: The prompt, complete.
        answers: What must all stand in its free greedy continuation, each in one of its spellings.
    """

    text: str
    answers: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt that measures something.

    Args:
        kind: What it measures: `rewrite`, `paraphrase`, `neighborhood`, `portability`,
            `subject_rephrase`, `paraphrase_ood`, `shuffle_ood`, `long_context`, ... (docs/data.md)
        text: The prompt, complete.
        answer: The continuation wanted, without a leading space.
        rival: The continuation it competes with, where there is one.
        aliases: Other right spellings of `answer`, accepted in free generation only.
        joiner: What stands between the prompt and an answer, see `kedit.text.prompts.between`.
        options: Of a choice all answers to choose from, `answer` among them; empty for any other probe.
        group: Part of its kind that is reported by itself too, e.g. `Reasoning` (KnowEdit, RippleEdits).
        test: Probes of a record with the same one count as one: `any 3` as the best of them, `all 3` as the worst.
        conditions: What the unedited model must know for the probe to be asked.
    """

    kind: str
    text: str
    answer: str
    rival: str | None = None
    aliases: tuple[str, ...] = ()
    joiner: Joiner = "auto"
    options: tuple[str, ...] = ()
    group: str | None = None
    test: str | None = None
    conditions: tuple[Condition, ...] = ()

    @property
    def subkind(self) -> str:
        """Kind and group, as reports call them: `portability.reasoning`."""
        return subkind(self.kind, self.group)


def subkind(kind: str, group: str | None) -> str:
    """What reports call a kind of probe, or a group of one: `portability.reasoning`."""
    return kind if group is None else f"{kind}.{group.lower()}"


@dataclass(frozen=True, slots=True)
class Variants:
    """Other forms of one request, drawn before anything is edited: one half may train, the other half tests.

    The two halves of a pair share no text. `kedit.data.robust_queries` makes them.

    Attributes:
        paraphrase_train: Other names of the subject that may train.
        paraphrase_test: Other names that must not.
        shuffle_train: The subject with its parts in another order; may train.
        shuffle_test: Other orders that must not.
        long_train: Texts to put before the prompt, with a space between; may train.
        long_test: Texts that must not.
    """

    paraphrase_train: tuple[str, ...] = ()
    paraphrase_test: tuple[str, ...] = ()
    shuffle_train: tuple[str, ...] = ()
    shuffle_test: tuple[str, ...] = ()
    long_train: tuple[str, ...] = ()
    long_test: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EditRecord:
    """A request with its probes: what every dataset reader yields.

    `meta` holds what only some datasets know (one JSON-able value per key: `known`, `split`,
    `subject_aliases`, `attribute_prompts`, ...). `variants` is None unless a data module was given `queries`.
    """

    request: EditRequest
    probes: tuple[Probe, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    variants: Variants | None = None


def with_joiner(record: EditRecord, joiner: Joiner) -> EditRecord:
    """The record with another choice of what stands between its prompts and their answers."""
    probes = tuple(replace(probe, joiner=joiner) for probe in record.probes)
    return replace(record, request=replace(record.request, joiner=joiner), probes=probes)


def fingerprint_of(records: Sequence[EditRecord]) -> str:
    """16 hex digits that stand for records with their probes, in order.

    Usual joiners, no variants and fields of probes that few data sets have do not count where they are not used.
    """
    rows = [asdict(record) for record in records]
    rows = [{key: value for key, value in row.items() if key != "variants" or value} for row in rows]
    for part in (part for row in rows for part in (row["request"], *row["probes"])):
        if part["joiner"] == "auto":
            del part["joiner"]
    for probe in (probe for row in rows for probe in row["probes"]):
        for name in ("options", "group", "test", "conditions"):
            if not probe[name]:
                del probe[name]
    text = json.dumps(rows, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
