"""What the readers of benchmark files share: records that are no edit are left out and counted, not refused.

A file of thousands of records has some with an empty target, a target that is the answer already, or a subject that the
prompt does not name. The same ones are left out for every method, so that methods edit the same records.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from kedit.data.readers import build
from kedit.data.readers.parse import Item, kind_of
from kedit.errors import KeditError
from kedit.request import EditRecord, EditRequest, Probe
from kedit.text.prompts import escaped

Left = Counter[str]
"""Numbers of records that are left out, by reason (`kedit.data.choosing.REASONS`)."""


def read_editable(
    path: str | Path, make: Callable[[Item, Left], EditRecord | None], left: Left | None
) -> list[EditRecord]:
    """The records of a file that `make` makes of its items; those that it makes None of are left out.

    Args:
        path: The file, or `hf:NAME[:CONFIG][:SPLIT]`.
        make: Makes a record of an item, or counts in its second argument why there is none.
        left: Takes the counts; None where nobody asks.

    Raises:
        KeditError: See `kedit.data.readers.parse.read_items`; what `make` refuses; no record is left.
    """
    counts = Left()
    records = build.read_with(path, lambda item: make(item, counts))
    if not records:
        reasons = {
            "no_target": "without a target",
            "no_op": "whose target is the true answer",
            "no_subject": "whose prompt does not name the subject",
        }
        why = ", ".join(f"{counts[name]} {said}" for name, said in reasons.items() if counts[name])
        raise KeditError(f"{path}: none of its {sum(counts.values())} records is an edit: {why}")
    if left is not None:
        left.update(counts)
    return records


def renamed(item: Item, names: Mapping[str, tuple[str, ...]], needed: Iterable[str]) -> Item:
    """The item with our names of its fields.

    Args:
        item: A record.
        names: Our name of a field -> what files call it; the first that is there is read.
        needed: Those that must be there and be text.

    Raises:
        KeditError: One of them is not; it has the name that files give it.
    """
    fields = {"case_id": item.raw["case_id"]}
    for ours, theirs in names.items():
        name = next((name for name in theirs if item.raw.get(name) is not None), None)
        fields[ours] = None if name is None else item.raw[name]
        if ours in needed and not isinstance(fields[ours], str):
            name, value = name or theirs[0], fields[ours]
            why = "is missing" if value is None else f"must be text, not {kind_of(value)}"
            raise item.error(f"field '{name}' {why}")
    return item.part(fields)


def request_in(item: Item, left: Left, with_subject: bool = True) -> EditRequest | None:
    """The request of an item in our names, or None where it is no edit: then `left` counts why.

    Args:
        item: `prompt`, `target_new`, and perhaps `subject`, `target_true`, `relation`.
        left: Takes the reason: `no_target`, `no_op`, `no_subject`.
        with_subject: Whether the prompt must name the subject; else the whole prompt is the request.

    Raises:
        KeditError: A field is missing or no text.
    """
    prompt, target = item.prompt("prompt"), item.text("target_new")
    true, others = build.answers_of(item, "target_true")
    subject = spelled_in(prompt, item.text("subject")) if with_subject else None
    if not target:
        left["no_target"] += 1
    elif target in (true, *others):
        left["no_op"] += 1
    elif with_subject and subject is None:
        left["no_subject"] += 1
    elif subject is not None:
        return build.request_of(item.part({**item.raw, "subject": subject}))
    else:
        return EditRequest(item.raw["case_id"], escaped(prompt), None, target, true)
    return None


def spelled_in(prompt: str, subject: str) -> str | None:
    """The subject as the prompt spells it, whatever its case; None where it is not in it (or the prompt a template)."""
    if not subject:
        return None
    if subject in prompt or build.slots(prompt) or build.NAMED_SLOT in prompt:
        return subject
    found = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt, re.IGNORECASE)
    return None if found is None else found.group()


def of_groups(item: Item, name: str, fields: tuple[str, ...]) -> Iterator[tuple[str | None, Item]]:
    """The entries of `neighbors` or `portability`, each with the category that it is under (None: under none).

    Args:
        item: The record.
        name: Our name of the field.
        fields: What files call it; the first that is there is read.
    """
    value = next((item.raw[field] for field in fields if item.raw.get(field) is not None), None)
    if isinstance(value, dict) and not item.part(value).has("text"):
        for group, entries in value.items():
            yield from ((group, entry) for entry in build.entries_of(item.part({name: entries}), name))
    else:
        yield from ((None, entry) for entry in build.entries_of(item.part({name: value}), name))


def kept_answers(item: Item, request: EditRequest, fields: tuple[str, ...]) -> Iterator[Probe]:
    """`neighborhood` probes: questions about something else, each with its own answer. One without is passed over."""
    for group, entry in of_groups(item, "neighbors", fields):
        answer, aliases = build.answers_of(entry, "answer")
        if answer is not None:
            rival = request.target_new if answer == request.target_true else None
            yield Probe("neighborhood", build.text_of(entry), answer, rival, aliases, group=group)


def consequences(item: Item, fields: tuple[str, ...]) -> Iterator[Probe]:
    """`portability` probes: what follows from the edit. One without an answer is passed over."""
    for group, entry in of_groups(item, "portability", fields):
        answer, aliases = build.answers_of(entry, "answer")
        if answer is not None:
            yield Probe("portability", build.text_of(entry), answer, None, aliases, group=group)
