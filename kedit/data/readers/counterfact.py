"""CounterFact: the official files and the flat form of the editing toolkits.

Official (`counterfact.json`, `multi_counterfact.json`): `requested_rewrite` with a template, and lists of
prompts beside it. Flat (`counterfact-edit.json` and everything shaped like it): the subject is filled in,
paraphrases and neighbours are a text or a list. Which one a record is, it says itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedit.data.readers import build
from kedit.data.readers.parse import Item, kind_of
from kedit.request import EditRecord

NOTES = (*build.PROMPTS, *build.IDS)


def read_counterfact(path: str | Path) -> list[EditRecord]:
    """Reads CounterFact in its official or its flat form.

    Probes: `rewrite`, `paraphrase`, `neighborhood`, and `portability` where the file has it. Attribute and
    generation prompts go to `meta`, with the Wikidata ids of the targets (`target_new_id`, `target_true_id`).

    Raises:
        KeditError: See `kedit.data.readers.parse.read_items`; a missing field; a subject missing from its prompt;
            a request that changes nothing.
    """
    return build.read_with(path, _build)


def _build(item: Item) -> EditRecord:
    meta: dict[str, Any] = {name: item.raw[name] for name in NOTES if name in item.raw}
    if "requested_rewrite" in item.raw:
        item = flat(item, meta)
    item.reads(build.FIELDS, (*NOTES, "requested_rewrite", *build.NOT_READ))
    request = build.request_of(item)
    probes = [
        *build.rewrite_and_paraphrases(item, request),
        *build.neighborhood(item, request),
        *build.portability(item),
    ]
    return EditRecord(request, tuple(probes), meta)


def flat(item: Item, meta: dict[str, Any]) -> Item:
    """Official form to flat form: the rewrite's fields move up, the Wikidata ids of its targets go to `meta`."""
    rewrite = item.raw["requested_rewrite"]
    if not isinstance(rewrite, dict):
        raise item.error(
            f"field 'requested_rewrite' must be an object, not {kind_of(rewrite)}; "
            "several edits per record are MQuAKE's: use that data set"
        )
    fields = dict(rewrite)
    for name in ("target_new", "target_true"):
        target = rewrite.get(name)
        if isinstance(target, dict):
            fields[name] = target.get("str")
            if "id" in target:
                meta[f"{name}_id"] = target["id"]
    return item.part({**item.raw, **fields})
