"""A user's own knowledge base as references: triples in TSV or JSONL, relation templates in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kedit.errors import KeditError, shown
from kedit.methods.steam.pool import Reference
from kedit.runtime.textfile import flaw_of, read_text, strict_json
from kedit.text.prompts import fill, slots

COLUMNS = ("subject", "relation", "object_id", "object")


def read_templates(path: str | Path) -> dict[str, list[str]]:
    """Relation templates: a JSON object, relation -> one or several templates with a `{}` for the subject.

    A template ends right before the object.

    Raises:
        KeditError: The file cannot be read, or a template has not exactly one `{}`.
    """
    raw = _json(_text(path), str(path))
    if not isinstance(raw, dict):
        raise KeditError(f"{path}: it must be a JSON object, relation to templates")
    found: dict[str, list[str]] = {}
    for relation, value in raw.items():
        templates = [value] if isinstance(value, str) else value
        good = isinstance(templates, list) and all(isinstance(t, str) and slots(t) == 1 for t in templates)
        if not good or not templates:
            raise KeditError(f"{path}: relation {shown(relation)} needs templates with exactly one {{}} each")
        found[relation] = templates
    return found


def read_knowledge(path: str | Path, templates: Mapping[str, Sequence[str]]) -> list[Reference]:
    """Triples of a knowledge base, one reference for every template of their relation.

    `.jsonl`: an object per line with `subject`, `relation`, `object` and perhaps `object_id`; with `prompt` (complete,
    ending before the object) no template is needed. Everything else is read as tab-separated lines: subject,
    relation, object id (may be empty), object.

    Raises:
        KeditError: The file cannot be read; a line lacks a field, or its relation a template; names the line.
    """
    found: list[Reference] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        item = _json(line, where) if Path(path).suffix == ".jsonl" else _columns(line, where)
        found += _references(item, where, templates)
    if not found:
        raise KeditError(f"{path}: there is no triple in it")
    return found


def _references(item: Any, where: str, templates: Mapping[str, Sequence[str]]) -> list[Reference]:
    if not isinstance(item, dict):
        raise KeditError(f"{where}: it must be a JSON object")
    fields: dict[str, str | None] = {}
    for name in ("subject", "relation", "object", "object_id", "prompt"):
        value = item.get(name)
        if value is not None and not isinstance(value, str):
            raise KeditError(f"{where}: field {name!r} must be text")
        fields[name] = (value or "").strip() or None
    answer, relation, subject = fields["object"], fields["relation"], fields["subject"]
    if answer is None:
        raise KeditError(f"{where}: the object is missing")
    if fields["prompt"] is not None:
        return [Reference(fields["prompt"], answer, relation, subject, fields["object_id"])]
    if subject is None or relation is None:
        raise KeditError(f"{where}: it needs a subject and a relation, or a prompt")
    if relation not in templates:
        raise KeditError(f"{where}: no template for relation {shown(relation)}; add it to model.anchors.templates")
    texts = [fill(template, subject).strip() for template in templates[relation]]
    return [Reference(text, answer, relation, subject, fields["object_id"]) for text in texts]


def _columns(line: str, where: str) -> dict[str, str]:
    cells = line.split("\t")
    if len(cells) != len(COLUMNS):
        raise KeditError(f"{where}: {len(cells)} columns; it needs {', '.join(COLUMNS)}, separated by tabs")
    return dict(zip(COLUMNS, cells, strict=True))


def _text(path: str | Path) -> str:
    return read_text(path, "a .jsonl file, or tab-separated lines (docs/anchors.md)")


def _json(text: str, where: str) -> Any:
    try:
        value = strict_json(text)
    except json.JSONDecodeError as error:
        raise KeditError(f"{where}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise KeditError(f"{where}: {error}") from None
    if (flaw := flaw_of(value)) is not None:
        raise KeditError(f"{where}: {flaw}")
    return value
