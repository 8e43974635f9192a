"""Probes that any record's own fields give: behind unrelated text, denied, neighbours behind the edit, choices.

`with_derived` makes them before anything is edited. All draws depend on a seed and the record's case id, so every
method is asked the same.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Literal

from kedit.data.choices import KINDS as CHOICES
from kedit.data.choices import Choices, sentence
from kedit.data.negation import negated
from kedit.data.passages import Passages
from kedit.data.robust_queries import room_before
from kedit.errors import KeditError, shown
from kedit.model.lm import LM
from kedit.model.tokenization import in_context, own_bos
from kedit.request import EditRecord, EditRequest, Probe
from kedit.text.prompts import escaped

log = logging.getLogger(__name__)

Derived = Literal["prefix_50", "prefix_200", "negated", "neighborhood_prefixed", "choice"]
"""What can be derived; `choice` gives four kinds of probe, any other the kind of its name."""

PREFIXES: tuple[tuple[Derived, int], ...] = (("prefix_50", 50), ("prefix_200", 200))
"""Kinds of probe, and the tokens of the text before them."""

NAMES: tuple[Derived, ...] = (*(kind for kind, _ in PREFIXES), "negated", "neighborhood_prefixed", "choice")
DERIVED: tuple[str, ...] = (*NAMES[:-1], *CHOICES)
"""All kinds of probe that are derived."""

_DRAWS = 10  # of a text that does not speak of the record


def kinds_of(names: Sequence[Derived]) -> tuple[str, ...]:
    """The kinds of probe that these give."""
    return tuple(kind for name in names for kind in (CHOICES if name == "choice" else (name,)))


def check_names(names: Sequence[str]) -> None:
    """Refuse what cannot be derived.

    Raises:
        KeditError: Names it.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise KeditError(f"data.derived: {shown(unknown[0], 40)} cannot be derived; give some of {', '.join(NAMES)}")


def with_derived(
    lm: LM,
    records: Sequence[EditRecord],
    everything: Sequence[EditRecord],
    names: Sequence[Derived],
    corpus: str = "self",
    seed: int = 0,
) -> list[EditRecord]:
    """The records with the probes that `names` say behind their own.

    A record that a rule does not fit gets no such probe; the log says how many have each kind.

    Args:
        lm: The unedited model: its tokenizer, and its own text where the corpus is "self".
        records: Those to edit; probes of these kinds are replaced.
        everything: All records of the data set, with all probes: wrong answers and neighbours are taken from there.
        names: What to derive.
        corpus: Of the texts put before prompts, as in `data.queries`.
        seed: Of all draws.

    Raises:
        KeditError: The corpus cannot be read or is too short.
    """
    if not records:
        return []
    whole = {record.request.case_id: record for record in everything}
    lengths = {kind: n for kind, n in PREFIXES if kind in names}
    passages = Passages.read(lm, corpus, "data.derived_corpus") if lengths else None
    choices = Choices(everything, seed) if "choice" in names else None
    results, had = [], Counter[str]()
    for record in records:
        source = whole.get(record.request.case_id, record)
        made: list[Probe] = []
        if own_bos(lm, record.request.text) is not None:  # else nothing can stand before it
            if passages is not None:
                made += _behind_text(passages, record.request, lengths, seed)
            made += _denied(record.request) if "negated" in names else ()
            made += _neighbours(lm, source) if "neighborhood_prefixed" in names else ()
            made += _chosen(lm, choices, source) if choices is not None else ()
        had.update({probe.kind for probe in made})
        kept = [probe for probe in record.probes if probe.kind not in kinds_of(names)]
        results.append(replace(record, probes=(*kept, *made)))
    counts = ", ".join(f"{kind} of {had[kind]}" for kind in kinds_of(names))
    log.info("data.derived: of %d records: %s", len(records), counts)
    return results


def _behind_text(passages: Passages, request: EditRequest, lengths: Mapping[str, int], seed: int) -> Iterator[Probe]:
    """The request behind texts of so many tokens, that name neither its subject nor its targets."""
    lm, targets = passages.lm, [text for text in (request.target_new, request.target_true) if text is not None]
    room = room_before(lm, [request.stating(target) for target in targets])
    about = [text.casefold() for text in (request.subject, *targets) if text]
    for kind, tokens in lengths.items():
        random = Random(f"{seed}/{request.case_id}/{kind}")
        for _ in range(_DRAWS):
            (text,) = passages.draw(passages.test, 1, random, tokens, tokens)
            if text and not any(word in text.casefold() for word in about):
                text = passages.fit(text, max(room, 0))
                whole = in_context(lm, f"{escaped(text)} {{}}", request.text) if text else request.text
                yield Probe(kind, whole, request.target_new, request.target_true, joiner=request.joiner)
                break


def _denied(request: EditRequest) -> Iterator[Probe]:
    """The true target is what should be said: once the edit holds, it is what the subject is not."""
    if request.subject is not None and request.target_true is not None:
        text = negated(request.prompt, request.subject)
        if text is not None:
            yield Probe("negated", text, request.target_true, request.target_new, joiner=request.joiner)


def _neighbours(lm: LM, record: EditRecord) -> Iterator[Probe]:
    """Each neighbour behind the edited fact, said as a sentence."""
    request = record.request
    said = sentence(request, request.target_new).removeprefix(own_bos(lm, request.text) or "")
    for probe in record.probes:
        if probe.kind == "neighborhood" and own_bos(lm, probe.text) is not None:
            yield replace(probe, kind="neighborhood_prefixed", text=in_context(lm, f"{escaped(said)} {{}}", probe.text))


def _chosen(lm: LM, choices: Choices, record: EditRecord) -> Iterator[Probe]:
    for context, probe in choices.of(record):
        yield replace(probe, text=in_context(lm, context, record.request.text))
