"""ZsRE: questions with a new answer, in the flat form published with PAC and in MEND's official form.

Flat: `prompt`, `target_new`, `ground_truth`, one paraphrase, one unrelated question; most name no subject. MEND:
`src`, `alt`, `answers`, `rephrase`, `loc`. Which form a record is, it says itself. The files hold empty, untrimmed
and pointless targets: what was found of them is counted, and it is for the caller to say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from kedit.data.readers import build
from kedit.data.readers.parse import Item, kind_of
from kedit.data.readers.robust import FIELDS as ROBUST
from kedit.data.readers.robust import robust_record
from kedit.errors import KeditError
from kedit.request import EditRecord, EditRequest

MEND: Mapping[str, str] = MappingProxyType(
    {
        "case_id": "case_id",
        "subject": "subject",
        "prompt": "src",
        "target_new": "alt",
        "target_true": "answers",
        "paraphrases": "rephrase",
        "neighbors": "loc",
        "locality_ground_truth": "loc_ans",
        "portability": "portability",
    }
)
"""Our name of a field -> its name in MEND's form. What is not here is not read (`pred`, `cond`)."""


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What a ZsRE file had to be cleaned of; all are numbers of records.

    Attributes:
        read: In the file.
        empty: Without a new target; dropped, for there is nothing to train on.
        no_op: With the true answer as the new target; dropped, or kept without a true target.
        kept: What is left.
        trimmed: Of those kept, the ones whose new target had white space around it.
        conflicting: Of those kept, the ones whose prompt another record expects to end otherwise; kept.
    """

    read: int
    empty: int
    no_op: int
    kept: int
    trimmed: int
    conflicting: int

    def notice(self, clean: bool) -> str:
        """The counts in one line; those that are 0 are left out, but for the first two."""
        dropped = self.empty + (self.no_op if clean else 0)
        parts = [f"{self.read} records read", f"{dropped} dropped"]
        reasons = [f"{self.empty} without a target"] if self.empty else []
        if self.no_op and clean:
            reasons.append(f"{self.no_op} no-op edits, whose target is the true answer")
        if reasons:
            parts[-1] += f" ({'; '.join(reasons)})"
        if self.no_op and not clean:
            parts.append(f"{self.no_op} no-op edits kept, without a true target")
        if self.trimmed:
            parts.append(f"{self.trimmed} targets trimmed")
        if self.conflicting:
            parts.append(f"{self.conflicting} kept whose prompt has several new targets")
        return ", ".join(parts)


def read_zsre(path: str | Path, clean: bool = True) -> list[EditRecord]:
    """Reads ZsRE in its flat form, in MEND's, or in that of the robust queries.

    Probes: `rewrite`, `paraphrase`, `neighborhood` (the unrelated question, with its own answer), and
    `subject_rephrase` where the file has other names. Other right spellings of the true answer go to
    `meta["target_true_aliases"]`. A record that names no subject has none in its request.

    Args:
        path: A `.json` list or a `.jsonl` file.
        clean: Drop edits whose new target is a right answer already. False keeps them, without a true target, as
            PAC's released run does. Empty targets are dropped and white space is removed either way.

    Raises:
        KeditError: As `read_counterfact`; a `{}` in a prompt without a subject; no record is left.
    """
    return clean_zsre(path, clean)[0]


def clean_zsre(path: str | Path, clean: bool = True) -> tuple[list[EditRecord], Cleaning]:
    """As `read_zsre`, with the counts of what was cleaned."""
    count = Counter[str]()
    records = build.read_with(path, partial(_build, clean=clean, count=count))
    found = Cleaning(
        read=count["read"],
        empty=count["empty"],
        no_op=count["no_op"],
        kept=len(records),
        trimmed=count["trimmed"],
        conflicting=build.conflicting(records),
    )
    if not records:
        raise KeditError(
            f"{path}: none of its {found.read} records is an edit: "
            f"{found.empty} without a target, {found.no_op} whose target is the true answer"
        )
    return records, found


def _build(item: Item, clean: bool, count: Counter[str]) -> EditRecord | None:
    """The record, or None where it is dropped."""
    count["read"] += 1
    _notice(item)
    item = _answered(_flat(item) if "src" in item.raw or "alt" in item.raw else item)
    target = item.text("target_new")
    if not target:
        count["empty"] += 1
        return None
    true, others = build.answers_of(item, "target_true")
    if target in (true, *others):
        count["no_op"] += 1
        if clean:
            return None
        item, others = item.part({**item.raw, "target_true": None, "ground_truth": None}), ()
    count["trimmed"] += target != item.get("target_new")
    if item.texts("subject_aliases"):
        return robust_record(item)
    request = _request(item)
    probes = [
        *build.rewrite_and_paraphrases(item, request),
        *build.neighborhood(item, request),
        *build.portability(item),
    ]
    return EditRecord(request, tuple(probes), {"target_true_aliases": list(others)} if others else {})


def _notice(item: Item) -> None:
    """Notes what is not read of the record's form."""
    if "src" in item.raw or "alt" in item.raw:
        item.reads(("case_id",), (*MEND.values(), *build.NOT_READ))
    else:
        robust = item.get("subject_aliases") is not None
        item.reads(ROBUST if robust else build.FIELDS, (*build.IDS, *build.NOT_READ))


def _request(item: Item) -> EditRequest:
    """The request: a template where the record names its subject, else the whole prompt."""
    if item.get("subject") is not None:
        return build.request_of(item)
    true, _ = build.answers_of(item, "target_true")
    return EditRequest(item.raw["case_id"], item.prompt("prompt"), None, item.text("target_new"), true)


def _flat(item: Item) -> Item:
    """MEND's form to the flat one. What must be there is checked while it has the name that the file gives it."""
    raw = item.raw
    for name in ("src", "alt"):
        if raw.get(name) is None:
            raise item.error(f"field '{name}' is missing")
        if not isinstance(raw[name], str):
            raise item.error(f"field '{name}' must be text, not {kind_of(raw[name])}")
    return item.part({name: raw.get(theirs) for name, theirs in MEND.items()})


def _answered(item: Item) -> Item:
    """Neighbours with their own answers. One without must not get the record's: it asks about something else.

    One question may have a list of spellings; several have an answer each, or one for all.
    """
    asked, answers = item.get("neighbors"), item.get("neighbor_answer")
    if isinstance(asked, str):
        asked, answers = [asked], [answers]
    if not isinstance(asked, list) or not all(isinstance(text, str) for text in asked):
        return item  # objects have answers of their own; anything else is refused in `neighborhood`
    answers = answers if isinstance(answers, list) else [answers] * len(asked)
    if len(answers) != len(asked):
        raise item.error(f"{len(answers)} answers for {len(asked)} neighbors; give one answer, or one for each")
    pairs = [{"prompt": t, "answer": "" if a is None else a} for t, a in zip(asked, answers, strict=True)]
    return item.part({**item.raw, "neighbors": pairs, "locality_ground_truth": None})
