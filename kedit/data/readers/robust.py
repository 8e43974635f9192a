"""Robust queries: flat records whose subject and prompt come reworded in many ways (the files of REP).

Their `subject_rephrase` asks whether an edit survives another name of its subject.
"""

from __future__ import annotations

from pathlib import Path

from kedit.data.readers import build
from kedit.data.readers.parse import Item
from kedit.request import EditRecord

FIELDS = (*(name for name in build.FIELDS if name != "portability"), "subject_aliases")
ORIGINAL_PARAPHRASES = 2  # CounterFact's own come first in the list; machine-made ones follow


def read_robust(path: str | Path) -> list[EditRecord]:
    """Reads the robust-query form of CounterFact or ZsRE.

    Probes: `rewrite`; `paraphrase` for CounterFact's own two; `rewording` for the machine-made others, which
    are looser (some drop the subject), without repeats and without the request's own words; `neighborhood`;
    `subject_rephrase`, one per other name of the subject, in the file's order. The names are in
    `meta["subject_aliases"]` too, and the Wikidata ids of the targets where the file has them.

    Raises:
        KeditError: As `read_counterfact`.
    """
    return build.read_with(path, _build)


def _build(item: Item) -> EditRecord:
    item.reads(FIELDS, (*build.IDS, *build.NOT_READ))
    return robust_record(item)


def robust_record(item: Item) -> EditRecord:
    """One record of the robust-query form; see `read_robust`."""
    if not item.texts("subject_aliases"):
        raise item.error("field 'subject_rephrase' is missing; for records without one use CounterFact")
    request = build.request_of(item)
    rewrite, *paraphrases = build.rewrite_and_paraphrases(item, request)
    seen = {rewrite.text, *(probe.text for probe in paraphrases[:ORIGINAL_PARAPHRASES])}
    rewordings = dict.fromkeys(probe.text for probe in paraphrases[ORIGINAL_PARAPHRASES:])
    aliases = build.aliases_of(item, request.named())
    probes = [
        rewrite,
        *paraphrases[:ORIGINAL_PARAPHRASES],
        *build.wanted(request, "rewording", (text for text in rewordings if text not in seen)),
        *build.neighborhood(item, request),
        *build.subject_rephrase(aliases, request),
    ]
    ids = {name: item.raw[name] for name in build.IDS if name in item.raw}
    return EditRecord(request, tuple(probes), {"subject_aliases": aliases} | ids)
