"""MQuAKE: cases of several edits, and the multi-hop questions that hold once all of them are made.

`requested_rewrite` is a list of rewrites in CounterFact's official form, each with a `question`; the case's `questions`
end in `new_answer`. Whether they can be met depends on which edits are made together: `unmet`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kedit.data.readers import build
from kedit.data.readers.counterfact import flat
from kedit.data.readers.parse import Item, kind_of, read_items
from kedit.data.readers.unread import say_unread
from kedit.request import EditRecord, EditRequest, Probe

MULTI_HOP = "portability"
CASE = ("case_id", "questions", "new_answer", "answer", "new_answer_alias")
CASE_OTHERS = (
    *("requested_rewrite", "new_single_hops"),
    *("answer_alias", "answer_extended", "single_hops", "orig"),  # unread
)
REWRITE = ("prompt", "relation", "target_new", "target_true", "subject", "question")
HOP = ("cloze", "question", "answer", "answer_alias")
SHORTEST_ALIAS = 3  # characters: of shorter ones ("it" of Italian, "NA") half are words, which any text begins with


def read_mquake(path: str | Path) -> list[EditRecord]:
    """Reads MQuAKE (MQuAKE-CF, MQuAKE-T and subsets), a record for every rewrite of a case, in order.

    Probes: `rewrite`; `paraphrase` (the rewrite's own question). The last record of a case also has its multi-hop
    questions (`portability`: the new answer, which competes with the old one) and the hops on the new way that no edit
    makes (`single_hop`), which the model has to know to answer them. Case ids are "CASE.1", "CASE.2", ...; `meta` has
    `case`, `edits` (rewrites of the case) and the Wikidata ids of the targets. Aliases of fewer than 3 characters are
    left out.

    Raises:
        KeditError: As `read_counterfact`; a case without rewrites, questions or new answer.
    """
    records: list[EditRecord] = []
    unread = Counter[str]()
    for case in read_items(path):
        records += _case(case)
        unread.update(set(case.unread))
    say_unread(path, unread)
    return records


def unmet(records: Sequence[EditRecord], regime: str | None = None) -> set[str]:
    """Cases whose multi-hop questions cannot be met when these records are edited.

    Those of which an edit is missing and, in the `single` regime, all that have several edits.
    """
    present = Counter(record.meta["case"] for record in records)
    return {
        record.meta["case"]
        for record in records
        if present[record.meta["case"]] < record.meta["edits"] or (regime == "single" and record.meta["edits"] > 1)
    }


def without_multi_hop(records: Sequence[EditRecord], cases: set[str]) -> list[EditRecord]:
    """The same records, those of `cases` without their multi-hop questions."""
    return [
        replace(record, probes=tuple(probe for probe in record.probes if probe.kind != MULTI_HOP))
        if record.meta["case"] in cases
        else record
        for record in records
    ]


@dataclass(frozen=True, slots=True)
class _Hop:
    """One step of the way from the first subject to the new answer."""

    texts: tuple[str, ...]  # as a cloze, as a question
    answer: str
    aliases: tuple[str, ...]


def _case(case: Item) -> list[EditRecord]:
    rewrites = case.raw.get("requested_rewrite")
    rewrites = [rewrites] if isinstance(rewrites, dict) else rewrites
    if not isinstance(rewrites, list) or not rewrites:
        raise case.error(f"field 'requested_rewrite' must be a list of edits, not {kind_of(rewrites)}")
    case.reads(CASE, CASE_OTHERS)
    hops = list(_hops(case))
    name, records = case.raw["case_id"], []
    for number, rewrite in enumerate(rewrites, start=1):
        raw = {"case_id": f"{name}.{number}", "requested_rewrite": rewrite}
        part = case.part(raw, f"{case.where}, rewrite {number}")
        meta: dict[str, Any] = {"case": name, "edits": len(rewrites)}
        with build.said_of(part):
            item = flat(part, meta)
            item.reads(REWRITE, ("case_id", "requested_rewrite"), "requested_rewrite")
            build.check_notes(item, meta)
            request = build.request_of(item)
        records.append(EditRecord(request, tuple(_of_one(item, request, hops)), meta))
    asked = {probe.text.rstrip() for record in records for probe in record.probes}
    unedited = [hop for hop in hops if not asked.intersection(hop.texts)]
    probes = [
        *_multi_hop(case),
        *dict.fromkeys(Probe("single_hop", hop.texts[0], hop.answer, None, hop.aliases) for hop in unedited),
    ]
    records[-1] = replace(records[-1], probes=(*records[-1].probes, *probes))
    return records


def _of_one(item: Item, request: EditRequest, hops: Sequence[_Hop]) -> Iterator[Probe]:
    """Probes of one rewrite: as the template and as the question, with the aliases that the case knows."""
    aliases = [hop.aliases for hop in hops if hop.answer == request.target_new and request.text.rstrip() in hop.texts]
    for kind, texts in (("rewrite", [request.text]), ("paraphrase", item.prompts("question"))):
        for probe in build.wanted(request, kind, texts):
            yield replace(probe, aliases=aliases[0] if aliases else ())


def _multi_hop(case: Item) -> list[Probe]:
    questions = case.prompts("questions")
    answers = case.texts("new_answer")
    if not questions or not answers:
        raise case.error(f"field '{'questions' if not questions else 'new_answer'}' is missing")
    old = next(iter(case.texts("answer")), None)
    rival = None if old == answers[0] else old
    aliases = _aliases(case, "new_answer_alias", answers[0])
    return [Probe(MULTI_HOP, text, answers[0], rival, aliases) for text in dict.fromkeys(questions)]


def _hops(case: Item) -> Iterator[_Hop]:
    """The single hops of the new way, where the file has them; those without a text or an answer are passed over."""
    entries = case.raw.get("new_single_hops") or []
    if not isinstance(entries, list):
        raise case.error(f"field 'new_single_hops' must be a list of objects, not {kind_of(entries)}")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise case.error(f"field 'new_single_hops' must be a list of objects; entry {number} is {kind_of(entry)}")
        item = case.part(entry, f"{case.where}, new_single_hops {number}")
        item.reads(HOP, (), "new_single_hops")
        texts, answers = (*item.texts("cloze"), *item.texts("question")), item.texts("answer")
        if texts and answers:
            yield _Hop(texts, answers[0], _aliases(item, "answer_alias", answers[0]))


def _aliases(item: Item, name: str, answer: str) -> tuple[str, ...]:
    spellings = dict.fromkeys(text for text in item.texts(name) if len(text) >= SHORTEST_ALIAS)
    return tuple(text for text in spellings if text != answer)
