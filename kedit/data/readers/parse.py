"""Files to raw items: opening, JSON and JSONL, the table of field names, messages that say where.

An `Item` is one JSON object that knows its file and position, so that every complaint names them.
What the fields mean is in `build.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kedit.errors import KeditError, shown
from kedit.request import shown_id
from kedit.runtime.hub_dataset import PREFIX, hub_rows
from kedit.runtime.textfile import flaw_of, read_text, strict_json
from kedit.text.prompts import trimmed

FILES = "a .json file with a list of records, or a .jsonl file with one record per line (docs/data.md)"

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

TABLES: Mapping[str, str] = MappingProxyType(
    {".csv": "CSV", ".tsv": "TSV", ".xls": "Excel", ".xlsx": "Excel", ".parquet": "Parquet"}
)
"""Endings of files that people have and kedit does not read."""


@dataclass(frozen=True, slots=True)
class Item:
    """One JSON object of a file.

    Args:
        where: What messages call it: `"FILE, record K (case_id X)"`.
        raw: The object.
        unread: Fields of the record that nobody reads; objects inside a record share its list.
    """

    where: str
    raw: Mapping[str, Any]
    unread: list[str] = field(default_factory=list, compare=False)

    def part(self, raw: Mapping[str, Any], where: str | None = None) -> Item:
        """Another object of the same record."""
        return Item(self.where if where is None else where, raw, self.unread)

    def reads(self, names: Iterable[str], others: Iterable[str] = (), within: str = "") -> None:
        """Notes the fields that are not read: unknown ones, and second spellings of one that is there already.

        Args:
            names: Our names of the fields that are read.
            others: Fields as files call them, read in another way or left alone on purpose.
            within: Our name of the field that this object is in.
        """
        known, place = set(others), f"{within}." if within else ""
        for name in names:
            given = [alias for alias in ALIASES[name] if self.raw.get(alias) not in (None, "", [])]
            known |= {alias for alias in ALIASES[name] if alias not in given[1:] or name == "case_id"}
        self.unread.extend(place + name for name in self.raw if name not in known)

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

    Results are keyed by the case id: a record without one, or with an empty one, is called by its position, from 1;
    where an id is taken, the later record becomes the first free of `X-2`, `X-3`, ...

    Raises:
        KeditError: The file cannot be read, is not JSON, cut off, not a list of objects, or empty.
    """
    objects = _load(path)
    if not objects:
        raise KeditError(f"{path}: holds no records")
    items = [_item(path, position, raw) for position, raw in enumerate(objects, start=1)]
    given = {case_id for _, case_id in items if case_id is not None}
    taken: set[str] = set()
    next_number: dict[str, int] = {}
    for position, (item, name) in enumerate(items, start=1):
        case_id = str(position) if name is None else name
        if case_id in taken or (name is None and case_id in given):
            number = next_number.get(case_id, 2)
            while (new := f"{case_id}-{number}") in taken or new in given:
                number += 1
            next_number[case_id] = number + 1
            case_id = new
        taken.add(case_id)
        yield replace(item, raw={**item.raw, "case_id": case_id})


def _item(path: str | Path, position: int, raw: Any) -> tuple[Item, str | None]:
    """A record, and the case id that it has."""
    where = f"{path}, record {position}"
    if not isinstance(raw, dict):
        raise KeditError(f"{where}: must be an object with named fields, not {kind_of(raw)}")
    item = Item(where, raw)
    for name, value in raw.items():
        if (flaw := flaw_of([name, value])) is not None:
            raise item.error(f"field {shown(name, 40)}: {flaw}")
    given = item.get("case_id")
    if isinstance(given, (bool, list, dict)):
        raise item.error(f"field 'case_id' must be text or a number, not {kind_of(given)}")
    case_id = None if given is None or not str(given).strip() else str(given)
    if case_id is None:
        return item, None
    return replace(item, where=f"{where} (case_id {shown_id(case_id)})"), case_id


def stem_of(path: str) -> str:
    """What a data set is called by its path: the file's name without ending, or that of an `hf:` data set."""
    if not path.startswith(PREFIX):
        return Path(path).stem
    return "-".join(part for part in path.removeprefix(PREFIX).split(":") if part).rstrip("/").rpartition("/")[2]


def _load(name: str | Path) -> list[Any]:
    if str(name).startswith(PREFIX):
        return hub_rows(str(name), "data.path")
    path = Path(name)
    if table := TABLES.get(path.suffix.lower()):
        raise KeditError(f"{path}: {table} files are not read; give {FILES}")
    text = read_text(path, FILES)
    if path.suffix.lower() == ".jsonl":
        # Not splitlines(): texts may hold U+2028 and its kin, which end no line of JSONL.
        lines = enumerate(text.split("\n"), start=1)
        return [_decode(line, path, number) for number, line in lines if line.strip()]
    if not text.strip():
        return []
    value = _decode(text, path, None)
    if not isinstance(value, list):
        raise KeditError(f"{path}: holds {kind_of(value)}, not a list of records")
    return value


def _decode(text: str, path: Path, line: int | None) -> Any:
    try:
        return strict_json(text)
    except json.JSONDecodeError as error:
        at = (line or 1) + error.lineno - 1
        hint = "it may be cut off: fetch or write it again"
        if error.msg == "Extra data" and line is None:
            hint = "if it has one object per line, name it .jsonl"
        raise KeditError(f"{path}, line {at}, column {error.colno}: not valid JSON ({error.msg}); {hint}") from None
    except ValueError as error:
        raise KeditError(f"{path}{'' if line is None else f', line {line}'}: {error}") from None
