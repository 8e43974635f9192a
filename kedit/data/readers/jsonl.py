"""kedit's own form of a record, the one to write your data in (docs/data.md); Facts is in it too."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from kedit.data.readers import build
from kedit.data.readers.parse import ALIASES, Item
from kedit.errors import shown
from kedit.request import EditRecord

FIELDS = (*build.FIELDS, "subject_aliases")
NOTES = (*build.PROMPTS, *build.IDS, *build.NOT_READ)
FOREIGN = re.compile(
    r"(^|_)(loc|locality|neighbou?rs?|neighbou?rhood|\w*phrase[sd]?|prompts?|portability|alias|aliases|questions?|answers?|"
    r"targets?|truth|hops?|ans)(_|$)",
    re.IGNORECASE,
)
"""Names that look like a probe of another format: kept in `meta` as any other, but the log names them."""


def read_records(path: str | Path) -> list[EditRecord]:
    """Reads kedit's own form, `.jsonl` or `.json`.

    Needed: `prompt` (a template, or with the subject filled in), `subject`, `target_new`. Optional:
    `case_id`, `target_true`, `relation`, `paraphrases`, `neighbors`, `portability`, `subject_aliases`. A `{}`
    in a paraphrase stands for the subject. Other fields (`split`, `known`, ...) go to `meta` as they are.

    Raises:
        KeditError: As `read_counterfact`; a field whose name is nearly one of ours.
    """
    return build.read_with(path, _build)


def _build(item: Item) -> EditRecord:
    meta = _meta(item)
    request = build.request_of(item)
    subject = request.named()
    aliases = build.aliases_of(item, subject)
    if aliases:
        meta["subject_aliases"] = aliases
    probes = [
        *build.rewrite_and_paraphrases(item, request, subject),
        *build.neighborhood(item, request),
        *build.portability(item),
        *build.subject_rephrase(aliases, request),
    ]
    return EditRecord(request, tuple(probes), meta)


def _meta(item: Item) -> dict[str, Any]:
    """Fields that are not ours. A slip of the pen in one of ours would silently lose its probes: refused."""
    ours = {alias for name in FIELDS for alias in ALIASES[name]}
    meta = {name: value for name, value in item.raw.items() if name not in ours}
    for name in meta:
        if near := difflib.get_close_matches(name, sorted(ours), n=1, cutoff=0.9):
            raise item.error(f"unknown field {shown(name)}; did you mean '{near[0]}'? (rename it otherwise)")
    item.reads(FIELDS, (name for name in meta if name in NOTES or not FOREIGN.search(name)))
    return meta
