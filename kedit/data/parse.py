"""Files to raw items: opening, JSON and JSONL, the table of field names, messages that say where.

An `Item` is one JSON object that knows its file and position, so that every complaint names them.
What the fields mean is in `build.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kedit.errors import KeditError
from kedit.prompts import trimmed

ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "case_id": ("case_id", "id"),
        "subject": ("subject",),
        "prompt": ("prompt",),
        "target_new": ("target_new", "target"),
        "target_true": ("target_true", "ground_truth"),
        "relation": ("relation", "relation_id"),
        "paraphrases": ("paraphrases", "paraphrase_prompts", "rephrase_prompt", "rephrase"),
        "neighbors": ("neighbors", "neighbours", "neighborhood_prompts", "locality_prompt", "locality"),
        "neighbor_answer": ("locality_ground_truth",),
        "portability": ("portability",),
        "subject_aliases": ("subject_aliases", "subject_rephrase"),
        # fields of the objects inside `neighbors` and `portability`
        "text": ("prompt", "loc", "New Question"),
        "answer": ("answer", "ground_truth", "loc_ans", "New Answer"),
        "old_answer": ("old_answer",),
        # fields of MQuAKE's cases, rewrites and hops
        "question": ("question",),
        "questions": ("questions",),
        "new_answer": ("new_answer",),
        "new_answer_alias": ("new_answer_alias",),
        "cloze": ("cloze",),
        "answer_alias": ("answer_alias",),
    }
)
"""Our name of a field -> the names it has in the files people have; the first one present is read."""


@dataclass(frozen=True, slots=True)
class Item:
    """One JSON object of a file.

    Args:
        where: What messages call it: `"FILE, record K (case_id X)"`.
        raw: The object.
    """

    where: str
    raw: Mapping[str, Any]

    def error(self, message: str) -> KeditError:
        """The exception to raise about this item."""
        return KeditError(f"{self.where}: {message}")

    def has(self, name: str) -> bool:
        """Whether the field is written at all, be it null."""
        return any(alias in self.raw for alias in ALIASES[name])

    def get(self, name: str) -> Any:
        """Value of a field under any of its names; None when absent or null."""
        return next((self.raw[alias] for alias in ALIASES[name] if self.raw.get(alias) is not None), None)

    def text(self, name: str) -> str:
        """A field that must be there and be text, stripped. An empty one is the caller's matter.

        Raises:
            KeditError: It is missing, null, or something else than text.
        """
        value = self.get(name)
        if value is None:
            raise self.error(f"field '{name}' is missing")
        if not isinstance(value, str):
            raise self.error(f"field '{name}' must be text, not {kind_of(value)}")
        return value.strip()

    def prompt(self, name: str) -> str:
        """As `text`, but with what `trimmed` leaves at its end: an answer follows it."""
        self.text(name)
        return trimmed(str(self.get(name)))

    def prompts(self, name: str) -> list[str]:
        """As `texts`, but with what `trimmed` leaves at their ends."""
        self.texts(name)
        value = self.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        return [trimmed(entry) for entry in values if entry.strip()]

    def texts(self, name: str) -> list[str]:
        """A field that is a text, a list of texts, or absent: its non-empty texts, stripped, in order."""
        value = self.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        for entry in values:
            if not isinstance(entry, str):
                raise self.error(f"field '{name}' must be text or a list of texts, not {kind_of(entry)}")
        return [entry.strip() for entry in values if entry.strip()]


def kind_of(value: Any) -> str:
    """JSON's word for a value, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def read_items(path: str | Path) -> Iterator[Item]:
    """Yields the records of a `.jsonl` file (one object per line) or of a JSON file (one list of objects).

    A record without a case_id is called by its position, from 1. When a file uses a case_id twice the later
    ones become `X-2`, `X-3`: results are keyed by it.

    Raises:
        KeditError: The file is missing, unreadable, not JSON, cut off, not a list of objects, or empty.
    """
    objects = _load(Path(path).expanduser())
    if not objects:
        raise KeditError(f"{path}: holds no records")
    seen: dict[str, int] = {}
    for position, raw in enumerate(objects, start=1):
        where = f"{path}, record {position}"
        if not isinstance(raw, dict):
            raise KeditError(f"{where}: must be an object with named fields, not {kind_of(raw)}")
        given = Item(where, raw).get("case_id")
        case_id = str(position if given is None else given)
        seen[case_id] = seen.get(case_id, 0) + 1
        if seen[case_id] > 1:
            case_id = f"{case_id}-{seen[case_id]}"
        where = where if given is None else f"{where} (case_id {case_id})"
        yield Item(where, {**raw, "case_id": case_id})


def _load(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise KeditError(f"{path}: no such file; paths are relative to the current folder") from None
    except (IsADirectoryError, PermissionError) as error:
        raise KeditError(f"{path}: cannot be read ({error.strerror}); give a .json or .jsonl file") from None
    except UnicodeDecodeError as error:
        raise KeditError(f"{path}: is not UTF-8 text (byte {error.start}); convert it first") from None
    if path.suffix == ".jsonl":
        # Not splitlines(): texts may hold U+2028 and its kin, which end no line of JSONL.
        lines = enumerate(text.split("\n"), start=1)
        return [_decode(line, path, number) for number, line in lines if line.strip()]
    if not text.strip():
        return []
    value = _decode(text, path, 1)
    if not isinstance(value, list):
        raise KeditError(f"{path}: holds {kind_of(value)}, not a list of records")
    return value


def _decode(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        hint = "it may be cut off: fetch or write it again"
        if error.msg == "Extra data" and path.suffix != ".jsonl":
            hint = "if it has one object per line, name it .jsonl"
        raise KeditError(f"{path}, line {line}, column {error.colno}: not valid JSON ({error.msg}); {hint}") from None
