"""UnKE and AKEW: facts told in a paragraph. The question is the request, and the paragraph its answer.

UnKE: `question`, `para_question`, `answer`, `sub_question[]`, `sub_answer[]`. AKEW: CounterFact's or MQuAKE's records
with `fact_new_uns` (the paragraph) and `unsfact_triplets_GPT[]` in their `requested_rewrite`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedit.data.readers import build
from kedit.data.readers.editable import Left, read_editable, request_in
from kedit.data.readers.parse import Item, kind_of
from kedit.request import EditRecord, Probe
from kedit.text.prompts import fill

FIELDS = ("case_id", "id", "question", "para_question", "answer", "sub_question", "sub_answer")
AKEW = (
    *("requested_rewrite", "paraphrase_prompts", "pararel_idx", "neighborhood_prompts", "attribute_prompts"),
    *("generation_prompts", "questions", "answer_alias", "new_answer", "new_answer_alias", "single_hops"),
    *("new_single_hops", "orig"),
)
TRIPLETS = 5  # of a paragraph's statements, the first so many are asked, as published work does
SUB = "sub_question"


def read_unke(path: str | Path, left: Left | None = None) -> list[EditRecord]:
    """Reads UnKE, and AKEW's records of edits in prose.

    Probes: `rewrite` (the question, answered by the paragraph); `paraphrase`; `portability` in the group sub_question:
    questions about parts of the paragraph. No request names a subject.

    Args:
        path: The file, or `hf:NAME[:CONFIG][:SPLIT]`.
        left: As `read_knowedit`.

    Raises:
        KeditError: As `read_knowedit`; another number of sub-questions than of answers to them.
    """
    return read_editable(path, _build, left)


def _build(item: Item, left: Left) -> EditRecord | None:
    akew = item.raw.get("requested_rewrite") is not None
    item.reads((), (*FIELDS, *(AKEW if akew else ()), *build.NOT_READ))
    given = _of_akew(item) if akew else item.raw
    flat = item.part(
        {
            "case_id": item.raw["case_id"],
            "prompt": given.get("question"),
            "target_new": given.get("answer"),
            "paraphrases": given.get("para_question"),
        }
    )
    for name, theirs in (("prompt", "question"), ("target_new", "answer")):
        if flat.raw[name] is None:
            raise item.error(f"field '{theirs}' is missing")
    if (request := request_in(flat, left, with_subject=False)) is None:
        return None
    probes = (*build.rewrite_and_paraphrases(flat, request), *_parts(item, given))
    return EditRecord(request, probes)


def _parts(item: Item, given: Any) -> Iterator[Probe]:
    """Questions about parts of the paragraph; one without an answer is passed over."""
    questions, answers = ((_listed(item, given.get(name), name)) for name in (SUB, "sub_answer"))
    if len(questions) != len(answers):
        raise item.error(f"{len(answers)} sub_answer for {len(questions)} sub_question; give one for each")
    for question, answer in zip(questions, answers, strict=True):
        if question and answer:
            yield Probe("portability", question, answer, group=SUB)


def _listed(item: Item, value: Any, name: str) -> list[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for entry in values:
        if not isinstance(entry, str):
            raise item.error(f"field '{name}' must be text or a list of texts, not {kind_of(entry)}")
    return [entry.strip() for entry in values]


def _of_akew(item: Item) -> dict[str, Any]:
    """UnKE's fields of a record of AKEW; of several rewrites the first, as published work does."""
    rewrite = item.raw["requested_rewrite"]
    rewrite = rewrite[0] if isinstance(rewrite, list) and rewrite else rewrite
    if not isinstance(rewrite, dict):
        raise item.error(f"field 'requested_rewrite' must be an object or a list of them, not {kind_of(rewrite)}")
    if rewrite.get("fact_new_uns") is None:
        raise item.error("field 'requested_rewrite.fact_new_uns' is missing; for edits without prose use CounterFact")
    question = rewrite.get("prompt_full") or rewrite.get("question")
    triplets = rewrite.get("unsfact_triplets_GPT") or []
    if not isinstance(triplets, list):
        raise item.error(f"field 'unsfact_triplets_GPT' must be a list of objects, not {kind_of(triplets)}")
    questions, answers = [], []
    for triplet in triplets[:TRIPLETS]:
        part = item.part(triplet if isinstance(triplet, dict) else {}, f"{item.where}, unsfact_triplets_GPT")
        questions.append(fill(part.text("prompt"), part.text("subject")))
        answers.append(part.text("target_new"))
    paraphrases = item.raw.get("paraphrase_prompts")
    return {
        "question": question,
        "answer": rewrite["fact_new_uns"],
        "para_question": paraphrases[:1] if isinstance(paraphrases, list) else paraphrases,
        SUB: questions,
        "sub_answer": answers,
    }
