"""Raw items to `EditRecord`s: the template, the probes, the rules that all formats share.

Each format's file (`counterfact.py`, `robust.py`, `records.py`) says only what is its own.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kedit.data.readers.parse import Item, kind_of, read_items
from kedit.data.readers.unread import say_unread
from kedit.errors import KeditError, shown
from kedit.request import EditRecord, EditRequest, Probe, shown_id
from kedit.text.prompts import NAMED_SLOT, escaped, fill, literal, slots, trimmed

FIELDS = (
    *("case_id", "prompt", "subject", "target_new", "target_true", "relation"),
    *("paraphrases", "neighbors", "neighbor_answer", "portability"),
)
"""Our names of the fields that the flat forms share."""

PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"neighbors": ("text", "answer", "subject"), "portability": ("text", "answer", "old_answer", "subject")}
)
"""Our names of the fields of the objects inside these."""

NOT_READ = (
    *("pararel_idx", "source", "source_case_id", "dataset", "metric", "Recalled Relation"),
    *("pred", "cond", "rephrase_target"),
)
"""Fields of the public files that are left alone on purpose, and that nobody is told of."""

PROMPTS = ("attribute_prompts", "attribute_snippets", "generation_prompts")
"""Fields of `meta`: prompts and texts without an answer, for fluency and consistency."""

IDS = ("target_new_id", "target_true_id")
"""Fields of `meta`: Wikidata ids of the targets, where a file has them."""


def read_with(path: str | Path, build: Callable[[Item], EditRecord | None]) -> list[EditRecord]:
    """Applies `build` to every item of a file; whatever it refuses is reported with file and record.

    An item that `build` makes None of is left out. Of several items that are refused the first is told of.
    """
    records, refused, record = [], [], None
    unread = Counter[str]()
    for item in read_items(path):
        try:
            with said_of(item):
                record = build(item)
                if record is not None:
                    check_notes(item, record.meta)
        except KeditError as error:
            refused.append(error)
            continue
        unread.update(set(item.unread))
        if record is not None:
            records.append(record)
    if refused:
        more = f" ({len(refused) - 1} more records are refused)" if len(refused) > 1 else ""
        raise KeditError(f"{refused[0]}{more}")
    say_unread(path, unread)
    return records


@contextmanager
def said_of(item: Item) -> Iterator[None]:
    """Inside, whatever is refused is reported with the item's file and record, once."""
    try:
        yield
    except KeditError as error:
        message = str(error).removeprefix(f"record {shown_id(item.raw['case_id'])}: ")
        prefix = "" if message.startswith(item.where) else f"{item.where}: "
        raise KeditError(f"{prefix}{message}") from None


def check_notes(item: Item, meta: Mapping[str, Any]) -> None:
    """Whether what `meta` keeps for others is what they take it for: lists of texts, and ids that are texts.

    Raises:
        KeditError: It is not.
    """
    for name in PROMPTS:
        texts = meta.get(name)
        if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
            raise item.error(f"field '{name}' must be a list of texts")
    for name in IDS:
        if meta.get(name) is not None and not isinstance(meta[name], str):
            raise item.error(f"field '{name}' (the target's 'id') must be text, not {kind_of(meta[name])}")


def conflicting(records: Sequence[EditRecord]) -> int:
    """Records whose prompt another one expects to end otherwise."""
    wishes: dict[str, set[str]] = defaultdict(set)
    for record in records:
        wishes[record.request.text].add(record.request.target_new)
    return sum(len(wishes[record.request.text]) > 1 for record in records)


def why_absent(subject: str, prompt: str) -> str:
    """What to do about a subject that its prompt does not hold."""
    forms = [unicodedata.normalize("NFC", text) for text in (subject, prompt)]
    if forms[0] in forms[1]:
        made = "composed (NFC)" if subject == forms[0] else "decomposed (NFD)"
        return f"they look alike, but the subject's accents are {made}, the prompt's are not: write both in NFC"
    if subject.casefold() in prompt.casefold():
        return "it differs in case: spell it as the prompt does"
    return "spell it as the prompt does, or put {} where it goes"


def template_of(prompt: str, subject: str, item: Item) -> str:
    """The prompt with its subject replaced by `{}`; a prompt that has a `{}` or a `{subject}` already is one.

    With a `{subject}` every `{}` means itself; `{{}}` always does. Of several occurrences the first that stands as a
    word of its own is taken (of "i" in "which song has i in it" the pronoun), else the first of all; the others stay as
    they are, so that the filled template always equals the prompt.

    Raises:
        KeditError: The subject is empty or does not occur; or it stands beside a `{}`, so that either may be meant (not
            in the official forms, whose prompts are always templates).
    """
    if not subject:
        raise item.error("the subject is empty")
    if NAMED_SLOT in prompt:
        return "{}".join(escaped(part) for part in prompt.split(NAMED_SLOT))
    found = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    if slots(prompt):
        if found and "requested_rewrite" not in item.raw:
            raise item.error(
                f"the prompt {shown(prompt)} has a '{{}}' and names the subject {shown(subject)} as well; write "
                "'{subject}' for the one that is edited ('{{}}' stands for braces that mean themselves)"
            )
        return prompt
    start = found.start() if found else prompt.find(subject)
    if start < 0:
        raise item.error(
            f"the subject {shown(subject)} does not occur in the prompt {shown(prompt)}; " + why_absent(subject, prompt)
        )
    return prompt[:start] + "{}" + prompt[start + len(subject) :]


def filled(text: str, subject: str) -> str:
    """A text of a file with the subject where its `{}` is, or its `{subject}`, beside which `{}` means itself."""
    if NAMED_SLOT in text:
        return literal(text.replace(NAMED_SLOT, subject))
    return fill(text, subject)


def request_of(item: Item) -> EditRequest:
    """The request of an item; without a named relation the template is the relation's key."""
    subject = item.text("subject")
    template = template_of(item.prompt("prompt"), subject, item)
    true, _ = answers_of(item, "target_true")
    return EditRequest(
        case_id=item.raw["case_id"],
        prompt=template,
        subject=subject,
        target_new=item.text("target_new"),
        target_true=true,
        relation=template if item.get("relation") is None else item.text("relation"),
    )


def answers_of(item: Item, name: str) -> tuple[str | None, tuple[str, ...]]:
    """An answer written as text, list of spellings, or list of such lists: (the first, the others)."""
    flat = list(dict.fromkeys(text.strip() for text in _flatten(item.get(name), item, name) if text.strip()))
    return (flat[0], tuple(flat[1:])) if flat else (None, ())


def _flatten(value: Any, item: Item, name: str) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for entry in value:
            yield from _flatten(entry, item, name)
    elif value is not None:
        raise item.error(f"field '{name}' must be text or a list of texts, not {kind_of(value)}")


def wanted(request: EditRequest, kind: str, texts: Iterable[str]) -> list[Probe]:
    """Probes that should now give the new target; the true one competes."""
    return [Probe(kind, text, request.target_new, request.target_true) for text in texts]


def rewrite_and_paraphrases(item: Item, request: EditRequest, subject: str | None = None) -> list[Probe]:
    """One `rewrite` probe (the request itself), a `paraphrase` probe per paraphrase, `subject` filled in if given."""
    texts = item.prompts("paraphrases")
    if subject is not None:
        texts = [filled(text, subject) for text in texts]
    return [*wanted(request, "rewrite", [request.text]), *wanted(request, "paraphrase", texts)]


def neighborhood(item: Item, request: EditRequest) -> list[Probe]:
    """`neighborhood` probes: texts, or objects with a text and perhaps an answer of their own.

    A neighbour without an answer shares the record's true object, as all of CounterFact's do: it should go on
    giving `target_true`, and `target_new` competes. A neighbour about something else (ZsRE's "nq question")
    has its own answer and no rival. One whose answer is written but empty is passed over.

    Raises:
        KeditError: Neither the neighbour nor the record says what the true answer is.
    """
    entries = list(entries_of(item, "neighbors"))
    listed = item.get("neighbor_answer")
    listed = listed if isinstance(listed, list) else [listed] * len(entries)
    if len(listed) != len(entries):
        raise item.error(f"{len(listed)} answers for {len(entries)} neighbors; give one answer, or one for each")
    probes = []
    for entry, common in zip(entries, listed, strict=True):
        own, aliases = answers_of(entry, "answer")
        if own is None and entry.get("answer") is not None:
            continue  # written, but empty: nothing to compare with
        answer = own or answers_of(item.part({"answer": common}), "answer")[0] or request.target_true
        if answer is None:
            raise item.error(
                "a neighbor has no answer and the record no target_true; "
                "give the neighbor an 'answer' or the record a 'target_true'"
            )
        rival = request.target_new if answer == request.target_true else None
        probes.append(Probe("neighborhood", text_of(entry), answer, rival, aliases))
    return probes


def portability(item: Item) -> list[Probe]:
    """`portability` probes: what follows from the edit. An entry whose answer is empty is passed over.

    One object, a list of them, or lists under category names (KnowEdit); a `prompt` with its `answer` or
    `ground_truth`, or a "New Question" with its "New Answer" (CounterFactPlus).
    """
    probes = []
    for entry in entries_of(item, "portability"):
        if not entry.has("answer"):
            raise entry.error("field 'answer' is missing")
        answer, aliases = answers_of(entry, "answer")
        if answer is not None:
            old, _ = answers_of(entry, "old_answer")
            probes.append(Probe("portability", text_of(entry), answer, old, aliases))
    return probes


def aliases_of(item: Item, subject: str) -> list[str]:
    """Other names of the subject, in order, without the subject itself and without repeats (in any case)."""
    seen, kept = {subject.casefold()}, []
    for name in item.texts("subject_aliases"):
        if name.casefold() not in seen:
            seen.add(name.casefold())
            kept.append(name)
    return kept


def subject_rephrase(aliases: Iterable[str], request: EditRequest) -> list[Probe]:
    """`subject_rephrase` probes: the template filled with each other name of the subject."""
    return wanted(request, "subject_rephrase", (request.about(name) for name in aliases))


def entries_of(item: Item, name: str) -> Iterator[Item]:
    """The objects of a field: a text, an object, a list of both, or such lists under category names."""
    value = item.get(name)
    if isinstance(value, dict) and not item.part(value).has("text"):
        value = [entry for group in value.values() for entry in (group if isinstance(group, list) else [group])]
    values = value if isinstance(value, list) else [] if value is None else [value]
    for number, entry in enumerate(values, start=1):
        if isinstance(entry, str):
            entry = {"prompt": entry}
        if not isinstance(entry, dict):
            raise item.error(f"field '{name}' must hold texts or objects with a 'prompt', not {kind_of(entry)}")
        part = item.part(entry, f"{item.where}, {name} {number}")
        part.reads(PARTS[name], NOT_READ, name)
        yield part


def text_of(entry: Item) -> str:
    """An entry's text, its own subject filled in where it has one and a `{}`."""
    value = entry.get("text")
    if not isinstance(value, str) or not value.strip():
        raise entry.error("field 'prompt' is missing")
    if slots(value) or NAMED_SLOT in value:
        value = filled(value, entry.text("subject"))
    return trimmed(value)
