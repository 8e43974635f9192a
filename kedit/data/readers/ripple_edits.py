"""RippleEdits: popular, random and recent. An edit is one sentence; its tests are in six lists.

The file names subject and target by their Wikidata ids alone, so their labels are taken from the sentence, by the
phrase of its relation (`ripple_phrases.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kedit.data.readers.editable import Left, read_editable
from kedit.data.readers.parse import Item, kind_of
from kedit.data.readers.ripple_phrases import PhrasedFact, fact_in
from kedit.request import Condition, EditRecord, EditRequest, Probe
from kedit.text.prompts import escaped, trimmed

LISTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "Logical_Generalization": ("portability", "Logical_Generalization"),
        "Compositionality_I": ("portability", "Compositionality_I"),
        "Compositionality_II": ("portability", "Compositionality_II"),
        "Subject_Aliasing": ("portability", "Subject_Aliasing"),
        "Relation_Specificity": ("neighborhood", "Relation_Specificity"),
        "Relation_Specifity": ("neighborhood", "Relation_Specificity"),
        "Forgetfulness": ("neighborhood", "Forgetfulness"),
    }
)
"""A list of tests, as files call it -> kind and group of its probes."""

OLD = ("original_fact", "previous_fact")
KNOWN = ("case_id", "id", "example_type", "edit", *LISTS)


def read_ripple_edits(path: str | Path, left: Left | None = None) -> list[EditRecord]:
    """Reads RippleEdits.

    Probes: `rewrite`, and one for every right answer of every query of a test: of kind `portability` (groups
    Logical_Generalization, Compositionality_I and _II, Subject_Aliasing) or `neighborhood` (Relation_Specificity,
    Forgetfulness). The probes of a test count as one: passed where any of its queries is (`OR`), or all (`AND`); of a
    query with several answers all are wanted. A probe has the conditions of its test: queries that the unedited model
    must answer. `meta` has `example_type`.

    Args:
        path: The file, or `hf:NAME[:CONFIG][:SPLIT]`.
        left: As `read_knowedit`; `no_subject` counts sentences that are not a phrase of their relation.

    Raises:
        KeditError: As `read_knowedit`.
    """
    return read_editable(path, _build, left)


def _build(item: Item, left: Left) -> EditRecord | None:
    item.reads((), KNOWN)
    edit = _object(item, item.raw.get("edit"), "edit")
    old_value = next((edit.raw[name] for name in OLD if edit.raw.get(name) is not None), None)
    old = None if old_value is None else _object(item, old_value, f"edit.{OLD[0]}").text("prompt")
    relation = edit.text("relation")
    fact = fact_in(edit.text("prompt"), relation, old)
    if fact is None:
        left["no_subject"] += 1
        return None
    if fact.target == fact.target_true:
        left["no_op"] += 1
        return None
    template = f"{escaped(fact.before)}{{}}{escaped(fact.behind)}"
    request = EditRequest(item.raw["case_id"], template, fact.subject, fact.target, fact.target_true, relation)
    rewrite = Probe("rewrite", request.text, request.target_new, request.target_true)
    meta = {"example_type": item.raw["example_type"]} if item.raw.get("example_type") is not None else {}
    return EditRecord(request, (rewrite, *_tests(item, fact)), meta)


def _tests(item: Item, fact: PhrasedFact) -> Iterator[Probe]:
    """The probes of all tests."""
    rivals = {fact.target: fact.target_true, fact.target_true: fact.target}
    number = 0
    for name, (kind, group) in LISTS.items():
        for test in _objects(item, item.raw.get(name), name):
            number += 1
            mode = "OR" if test.raw.get("test_condition") is None else test.raw["test_condition"]
            if mode not in ("OR", "AND"):
                raise test.error(f"field 'test_condition' must be OR or AND, not {kind_of(mode)}")
            queries = list(_queries(test, "test_queries"))
            conditions = tuple(Condition(*query) for query in _queries(test, "condition_queries"))
            several = len(queries) > 1
            for text, answers in queries:
                for answer, *aliases in answers[:1] if several and mode == "OR" else answers:
                    joint = "any" if several and mode == "OR" else "all"
                    alone = not several and len(answers) == 1
                    yield Probe(
                        kind,
                        text,
                        answer,
                        rivals.get(answer),
                        tuple(aliases),
                        group=group,
                        test=None if alone else f"{joint} {number}",
                        conditions=conditions,
                    )


def _queries(test: Item, name: str) -> Iterator[tuple[str, tuple[tuple[str, ...], ...]]]:
    """Text of every query, and the spellings of each of its answers; one without answers is passed over."""
    for query in _objects(test, test.raw.get(name), name):
        text = trimmed(query.prompt("prompt"))
        if not text.strip():
            raise query.error("field 'prompt' is empty")
        answers = []
        for answer in _objects(query, query.raw.get("answers"), "answers"):
            value = answer.raw.get("value")
            if not isinstance(value, str):
                raise answer.error(f"field 'value' must be text, not {kind_of(value)}")
            spellings = (value, *answer.part({"subject_aliases": answer.raw.get("aliases")}).texts("subject_aliases"))
            if kept := tuple(dict.fromkeys(text.strip() for text in spellings if _is_answer(text.strip()))):
                answers.append(kept)
        if answers:
            yield text, tuple(answers)


def _is_answer(text: str) -> bool:
    """Single letters are no spellings: any text has them. Digits are."""
    return len(text) > 1 or text.isdigit()


def _object(item: Item, value: Any, name: str) -> Item:
    if not isinstance(value, dict):
        why = "is missing" if value is None else f"must be an object, not {kind_of(value)}"
        raise item.error(f"field '{name}' {why}")
    return item.part(value, f"{item.where}, {name}")


def _objects(item: Item, value: Any, name: str) -> Iterator[Item]:
    values = [] if value is None else value
    if not isinstance(values, list):
        raise item.error(f"field '{name}' must be a list of objects, not {kind_of(values)}")
    for number, entry in enumerate(values, start=1):
        yield _object(item, entry, f"{name} {number}")
