"""KnowEdit: wiki_recent, wiki_counterfact, ZsRE and WikiBio, with probes under category names.

`ground_truth` is a text, a list, or a list of lists of spellings, and may be empty. WikiBio calls its fields `text`,
`labels` and `concept`, and its target is the rest of a biography.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from kedit.data.readers import build
from kedit.data.readers.editable import Left, consequences, kept_answers, read_editable, renamed, request_in
from kedit.data.readers.parse import Item
from kedit.request import EditRecord

NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "prompt": ("prompt", "text"),
        "target_new": ("target_new", "labels"),
        "subject": ("subject", "concept"),
        "target_true": ("ground_truth",),
        "relation": ("relation", "relation_id"),
        "paraphrases": ("rephrase_prompt", "rephrase"),
    }
)
OTHERS = ("case_id", "id", "locality", "portability", *build.NOT_READ)


def read_knowedit(path: str | Path, left: Left | None = None) -> list[EditRecord]:
    """Reads the files of KnowEdit.

    Probes: `rewrite`; `paraphrase` where the file has one; `portability` in the groups Reasoning, Subject_Aliasing and
    Logical_Generalization; `neighborhood` in the groups Relation_Specificity and Forgetfulness. A probe without an
    answer is passed over; the first of several spellings is the answer, the others are its aliases.

    Args:
        path: The file, or `hf:NAME[:CONFIG][:SPLIT]`.
        left: Takes the numbers of records that are left out: without a target, with the true answer as the target, or
            with a prompt that does not name the subject.

    Raises:
        KeditError: See `kedit.data.readers.parse.read_items`; a field that is missing or of another kind.
    """
    return read_editable(path, _build, left)


def _build(item: Item, left: Left) -> EditRecord | None:
    item.reads((), (*OTHERS, *(name for names in NAMES.values() for name in names)))
    flat = renamed(item, NAMES, ("prompt", "target_new", "subject"))
    if (request := request_in(flat, left)) is None:
        return None
    probes = (
        *build.rewrite_and_paraphrases(flat, request),
        *kept_answers(item, request, ("locality",)),
        *consequences(item, ("portability",)),
    )
    return EditRecord(request, probes)
