"""WikiBigEdit: questions about facts that changed in Wikidata, in the official files and in the flat form of them.

Official: `update` (the question), `ans`, `rephrase`, `personas`, `loc`, `loc_ans`, `mhop`, `mhop_ans`. Flat: `prompt`,
`target_new`, `rephrase_prompt`, `locality_prompt`, `locality_ground_truth`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from kedit.data.readers import build
from kedit.data.readers.editable import Left, read_editable, renamed, request_in
from kedit.data.readers.parse import Item
from kedit.request import EditRecord, Probe

NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "prompt": ("update", "prompt", "question"),
        "target_new": ("ans", "target_new", "target"),
        "subject": ("subject",),
        "relation": ("relation",),
        "paraphrases": ("rephrase", "rephrase_prompt"),
        "personas": ("personas",),
        "loc": ("loc", "locality_prompt", "locality"),
        "loc_ans": ("loc_ans", "locality_ground_truth"),
        "mhop": ("mhop",),
        "mhop_ans": ("mhop_ans",),
    }
)
OTHERS = ("case_id", "id", "object", "tag", *build.NOT_READ)


def read_wikibigedit(path: str | Path, left: Left | None = None) -> list[EditRecord]:
    """Reads WikiBigEdit.

    Probes: `rewrite`; `paraphrase` (in the groups rephrase and personas, where a record has both); `neighborhood`;
    `portability` in the group multi_hop. `meta` has the `tag` of the record where the file has one.

    Args:
        path: The file, or `hf:NAME[:CONFIG][:SPLIT]`.
        left: As `read_knowedit`.

    Raises:
        KeditError: As `read_knowedit`.
    """
    return read_editable(path, _build, left)


def _build(item: Item, left: Left) -> EditRecord | None:
    item.reads((), (*OTHERS, *(name for names in NAMES.values() for name in names)))
    flat = renamed(item, NAMES, ("prompt", "target_new", "subject"))
    if (request := request_in(flat, left)) is None:
        return None
    personas = [text for text in _texts(flat, "personas") if text]
    rewrite, *paraphrases = build.rewrite_and_paraphrases(flat, request)
    if personas:
        paraphrases = [replace(probe, group="rephrase") for probe in paraphrases]
    probes = [
        rewrite,
        *paraphrases,
        *(replace(probe, group="personas") for probe in build.wanted(request, "paraphrase", personas)),
        *_asked(flat, "neighborhood", "loc", "loc_ans"),
        *_asked(flat, "portability", "mhop", "mhop_ans", "multi_hop"),
    ]
    tag = item.raw.get("tag")
    return EditRecord(request, tuple(probes), {} if tag is None else {"tag": tag})


def _texts(item: Item, name: str) -> list[str]:
    """A field that is a text, a list of texts, or absent."""
    return item.part({"paraphrases": item.raw[name]}).prompts("paraphrases")


def _asked(item: Item, kind: str, question: str, answer: str, group: str | None = None) -> list[Probe]:
    """A question with its own answer, where the record has both."""
    texts, (own, aliases) = _texts(item, question), build.answers_of(item.part({"answer": item.raw[answer]}), "answer")
    return [] if own is None else [Probe(kind, text, own, None, aliases, group=group) for text in texts]
