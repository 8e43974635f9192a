"""QAEdit (WILD): questions of common benchmarks with their right answers, and five unrelated questions each."""

from __future__ import annotations

from pathlib import Path

from kedit.data.readers import build
from kedit.data.readers.editable import Left, kept_answers, read_editable, request_in
from kedit.data.readers.parse import Item
from kedit.request import EditRecord

FIELDS = ("case_id", "prompt", "target_new", "subject", "target_true", "paraphrases")


def read_qaedit(path: str | Path, left: Left | None = None) -> list[EditRecord]:
    """Reads QAEdit.

    Probes: `rewrite`, `paraphrase`, `neighborhood` (each unrelated question with its own answer). `meta` has the
    `source` (NQ, TriviaQA, SimpleQA). The target is the right answer, so there is no true target.

    Args:
        path: The file, or `hf:NAME[:CONFIG][:SPLIT]`.
        left: As `read_knowedit`.

    Raises:
        KeditError: As `read_knowedit`.
    """
    return read_editable(path, _build, left)


def _build(item: Item, left: Left) -> EditRecord | None:
    item.reads(FIELDS, ("locality", *build.NOT_READ))
    if (request := request_in(item, left)) is None:
        return None
    source = item.raw.get("source")
    probes = (*build.rewrite_and_paraphrases(item, request), *kept_answers(item, request, ("locality",)))
    return EditRecord(request, probes, {} if source is None else {"source": source})
