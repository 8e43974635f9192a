"""What generated texts are compared with, offline: reference texts of a record, and the texts TF-IDF is fitted on.

ROME's consistency takes Wikipedia passages about entities that share (relation, new target) and weights from a large
corpus. Without these files the data set's own records serve for both; the number is then called `consistency_local`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kedit.request import EditRecord
from kedit.results.intervals import paired_cell
from kedit.text.prompts import joined

LOCAL = "consistency_local"
"""The name of the consistency with TF-IDF and references of the data set itself."""


def references_of(record: EditRecord, records: Sequence[EditRecord]) -> list[str]:
    """Texts about entities that share the record's relation and have its new target.

    The first of these that there are any of: the record's own `attribute_snippets` (`meta`), as they are; its
    `attribute_prompts` (`meta`) with the new target after them; what other records say whose answer is the new target,
    of its relation; the same of any relation. Another record says its request with the true target, and its
    neighborhood prompts with their answers.

    Args:
        record: Whose references.
        records: Where to look for others; the record itself is passed over.
    """
    snippets = _texts(record, "attribute_snippets")
    if snippets:
        return snippets
    target = record.request.target_new
    if prompts := _texts(record, "attribute_prompts"):
        return [f"{prompt} {target}" for prompt in prompts]
    others = [other for other in records if other.request.case_id != record.request.case_id]
    same = [other for other in others if other.request.relation == record.request.relation]
    for group in (same, others):
        if statements := [
            joined(text, answer, other.request.joiner)
            for other in group
            for text, answer in _true(other)
            if answer == target
        ]:
            return list(dict.fromkeys(statements))
    return []


def collection(records: Iterable[EditRecord]) -> list[str]:
    """All that records say, once each: prompts of requests, probes and attributes with their answers; snippets."""
    said: dict[str, None] = {}
    for record in records:
        request = record.request
        said[request.stating(request.target_new)] = None
        said |= dict.fromkeys(joined(text, answer, request.joiner) for text, answer in _true(record))
        said |= dict.fromkeys(joined(probe.text, probe.answer, probe.joiner) for probe in record.probes)
        said |= dict.fromkeys(
            joined(prompt, request.target_new, request.joiner) for prompt in _texts(record, "attribute_prompts")
        )
        said |= dict.fromkeys(_texts(record, "attribute_snippets"))
    return list(said)


def summary_rows(rows: Iterable[Mapping[str, Any]], resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Means of the texts in result rows: a line for each moment of measurement and quantity.

    A line has `measured_at`, `name` (`fluency` in bits, `consistency_local` in percent), `unit`, and `before`, `after`,
    `change`, `ci` of after and `change_ci` (95 % bootstrap, over records) with `n_records`.
    """
    rows = [row for row in rows if row.get("texts") is not None]
    lines = []
    for measured_at in dict.fromkeys(str(row["measured_at"]) for row in rows):
        of_case = {str(row["case_id"]): row["texts"] for row in rows if row["measured_at"] == measured_at}
        for key, name, unit, factor in (("fluency", "fluency", "bits", 1), ("consistency", LOCAL, "percent", 100)):
            pairs = [(texts["before"][key], texts["after"][key]) for texts in of_case.values()]
            both = [(factor * before, factor * after) for before, after in pairs if None not in (before, after)]
            if both:
                lines.append(
                    {"measured_at": measured_at, "name": name, "unit": unit, **paired_cell(both, resamples, seed)}
                )
    return lines


def _true(record: EditRecord) -> list[tuple[str, str]]:
    """(text, answer) of what a record knows to be true before its edit."""
    request = record.request
    known = [] if request.target_true is None else [(request.text, request.target_true)]
    return known + [(probe.text, probe.answer) for probe in record.probes if probe.kind == "neighborhood"]


def _texts(record: EditRecord, name: str) -> list[str]:
    """The texts of a field of `meta`; nothing else is taken for a text."""
    value = record.meta.get(name)
    return [text.strip() for text in value if isinstance(text, str) and text.strip()] if isinstance(value, list) else []
