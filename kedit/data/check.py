"""What there is to know of a file of records before it is edited: counts, targets, duplicates, what was left out.

Plain facts as a JSON-able mapping (`check`); `kedit data check` prints them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kedit.data.readers.parse import read_items
from kedit.request import EditRecord

if TYPE_CHECKING:
    from kedit.data.chosen_records import ChosenRecords

SHOWN = 3  # examples of each finding


def check(data: ChosenRecords, path: str) -> dict[str, Any]:
    """The facts of a file, JSON-able.

    Args:
        data: The data set that reads it.
        path: The file, or `hf:NAME[:CONFIG][:SPLIT]`.

    Returns:
        `objects` (of the file), `records` (that can be edited), `left_out` (numbers by reason), `probes` (by kind and
        group: `probes`, `records`, `with_rival`, `with_conditions`), `subjects` (requests that name one),
        `true_targets`, `targets`, `same_fact` and `conflicts` (`records`, `facts`, `examples`), `first` (the first
        record as kedit has it).

    Raises:
        KeditError: The file cannot be read.
    """
    records = data.everything
    objects = {str(item.raw["case_id"]): item.raw for item in read_items(path)}
    requests = [record.request for record in records]
    return {
        "objects": len(objects),
        "records": len(records),
        "left_out": {reason: n for reason, n in data.left_out.items() if n},
        "probes": _probes(records),
        "subjects": sum(request.subject is not None for request in requests),
        "true_targets": sum(request.target_true is not None for request in requests),
        "targets": _targets(records, objects),
        "same_fact": _groups(_facts(records).values(), differing=False),
        "conflicts": _groups(_facts(records).values(), differing=True),
        "first": _first(records[0]),
    }


def _probes(records: Sequence[EditRecord]) -> dict[str, dict[str, int]]:
    """Kind, and kind with group -> how many probes there are, in how many records."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        for name in {name for probe in record.probes for name in (probe.kind, probe.subkind)}:
            found[name]["records"] += 1
        for probe in record.probes:
            for name in dict.fromkeys((probe.kind, probe.subkind)):
                found[name]["probes"] += 1
                found[name]["with_rival"] += probe.rival is not None
                found[name]["with_conditions"] += bool(probe.conditions)
    return {name: dict(count) for name, count in sorted(found.items())}


def _targets(records: Sequence[EditRecord], objects: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How many words new targets have, and how many had white space around them in the file."""
    words = {record.request.case_id: len(record.request.target_new.split()) for record in records}
    longest = max(records, key=lambda record: words[record.request.case_id]).request
    return {
        "several_words": sum(n > 1 for n in words.values()),
        "most_words": words[longest.case_id],
        "longest": {"case_id": longest.case_id, "target_new": longest.target_new},
        "untrimmed": sum(_untrimmed(record, objects) for record in records),
    }


def _untrimmed(record: EditRecord, objects: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the file has white space around the record's new target."""
    raw = objects.get(str(record.meta.get("case", record.request.case_id)), {})
    target = record.request.target_new
    texts = (text for text in _texts(raw) if text.strip() == target)
    return any(text != target for text in texts)


def _texts(value: Any, depth: int = 4) -> Iterator[str]:
    """The texts of an object and of those in it, some way down."""
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part, depth - 1)


def _facts(records: Sequence[EditRecord]) -> dict[tuple[str, str], list[EditRecord]]:
    """Subject and relation (or the whole prompt, where no subject is named) -> the records that edit it."""
    found: dict[tuple[str, str], list[EditRecord]] = defaultdict(list)
    for record in records:
        request = record.request
        key = ("", request.text) if request.subject is None else (request.subject, request.relation or request.prompt)
        found[key].append(record)
    return found


def _groups(facts: Iterable[Sequence[EditRecord]], differing: bool) -> dict[str, Any]:
    """Facts that several records edit; with `differing` those whose records do not all want the same target."""
    several = [
        records
        for records in facts
        if len(records) > 1 and (not differing or len({record.request.target_new for record in records}) > 1)
    ]
    return {
        "records": sum(map(len, several)),
        "facts": len(several),
        "examples": [_example(records, differing) for records in several[:SHOWN]],
    }


def _example(records: Sequence[EditRecord], differing: bool) -> dict[str, Any]:
    """The first records that edit a fact; with `differing` one for each target."""
    requests = [record.request for record in records]
    if differing:
        requests = list({request.target_new: request for request in reversed(requests)}.values())[::-1]
    return {
        "text": requests[0].text,
        "targets": [request.target_new for request in requests[:SHOWN]],
        "case_ids": [request.case_id for request in requests[:SHOWN]],
    }


def _first(record: EditRecord) -> dict[str, Any]:
    """A record with its probes, without what they do not have."""
    probes = [{name: value for name, value in asdict(probe).items() if value} for probe in record.probes]
    return {"request": asdict(record.request) | {"text": record.request.text}, "probes": probes, "meta": record.meta}
