"""What is asked besides the request itself, where the user gives nothing more: other wordings, and other subjects.

Paraphrases put something before the prompt that holds of any text, so that no knowledge is needed to write them.
Neighbours are the same prompt about other subjects, which are taken from the facts that ship with kedit:

1. where the prompt or the subject is one of a relation there, the relation's other subjects;
2. otherwise, where a word of the prompt tells what kind of thing its subject is, subjects of that kind;
3. otherwise one subject each of several kinds.

What a neighbour should be continued with is never made up: it is compared with what the unedited model says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType

from kedit.data.readers.facts import read_facts
from kedit.request import EditRecord, EditRequest

PARAPHRASES, NEIGHBOURS = 3, 3
"""How many of each there are at most."""

FRAMES = (
    "Everybody knows it. {}",
    "The weather was fine that day. {}",
    "Complete the sentence.\n{}",
)
"""What stands before a prompt that is the beginning of a sentence."""

QUESTION_FRAMES = ("Question: {} Answer:", "Please answer. {}", "A visitor asked me something. {}")
"""The same for a prompt that asks."""

KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "person": ("person_birth_country", "person_field"),
        "country": ("country_continent", "country_language"),
        "company": ("company_country",),
        "work": ("work_author",),
        "landmark": ("landmark_country", "landmark_city"),
        "city": ("city_country", "city_state"),
    }
)
"""Kinds of subject -> relations of the shipped facts whose subjects are of that kind."""

HINTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "person": (
            *(
                "tongue",
                "born",
                "occupation",
                "profession",
                "citizenship",
                "plays",
                "played",
                "sport",
                "wife",
                "husband",
            ),
            *(
                "married",
                "died",
                "position",
                "instrument",
                "speaks",
                "politician",
                "actor",
                "singer",
                "works",
                "worked",
            ),
        ),
        "company": ("headquarter", "headquarters", "headquartered", "founded", "founder", "company", "ceo", "produced"),
        "work": (
            "author",
            "written",
            "wrote",
            "novel",
            "book",
            "film",
            "directed",
            "composed",
            "painted",
            "song",
            "play",
        ),
        "country": ("capital", "language", "currency", "continent", "president", "population", "government"),
        "city": ("city", "mayor", "twin", "town"),
        "landmark": ("located", "tower", "building", "museum", "bridge", "stands", "found"),
    }
)
"""Words of a prompt that tell what its subject is; the kinds are tried in this order."""

SEVERAL = ("person", "city", "company")
"""The kinds that are asked where nothing tells."""


def paraphrases(request: EditRequest, most: int = PARAPHRASES) -> list[str]:
    """The request's prompt, with its subject, in other wordings.

    Args:
        request: The request.
        most: How many.
    """
    frames = QUESTION_FRAMES if request.text.rstrip().endswith("?") else FRAMES
    return [frame.replace("{}", request.text) for frame in frames[: max(most, 0)]]


def neighbours(request: EditRequest, most: int = NEIGHBOURS) -> list[str]:
    """The request's prompt about other subjects; none where it names no subject.

    Args:
        request: The request.
        most: How many.
    """
    if request.subject is None:
        return []
    avoid = {name.casefold() for name in (request.subject, request.target_new, request.target_true) if name}
    chosen: list[str] = []
    for subject in _subjects(request):
        if len(chosen) >= most:
            break
        if subject.casefold() not in avoid:
            avoid.add(subject.casefold())
            chosen.append(request.about(subject))
    return chosen


def _subjects(request: EditRequest) -> Iterator[str]:
    """Other subjects, the likeliest first."""
    facts = _known_facts()
    assert request.subject is not None
    for relation, records in facts.items():
        own = [record.request.subject or "" for record in records]
        place = next((i for i, name in enumerate(own) if name.casefold() == _bare(request.subject)), None)
        same = _relation_words(records) == _words(request.prompt)
        if same or (place is not None and _is_kind(relation, request)):
            yield from _from(own, -1 if place is None else place)
    kind = _kind(request)
    if kind is not None:
        yield from _of_kind(kind)
    else:
        pools = [list(_of_kind(one)) for one in SEVERAL]
        yield from (name for turn in zip(*pools, strict=False) for name in turn)


def _is_kind(relation: str, request: EditRequest) -> bool:
    """Whether subjects of the relation can stand in the prompt: as far as its words tell."""
    kind = _kind(request)
    return kind is None or relation in KINDS[kind] or not any(relation in own for own in KINDS.values())


def _kind(request: EditRequest) -> str | None:
    words = _words(request.prompt)
    return next((kind for kind, hints in HINTS.items() if words & set(hints)), None)


def _of_kind(kind: str) -> Iterator[str]:
    """Subjects of the kind, from one target to the next, so that the first few differ."""
    for relation in KINDS[kind]:
        by_target: dict[str | None, list[str]] = {}
        for record in _known_facts()[relation]:
            by_target.setdefault(record.request.target_true, []).append(record.request.subject or "")
        pools = list(by_target.values())
        yield from (pool[turn] for turn in range(max(map(len, pools))) for pool in pools if turn < len(pool))


def _from(names: Sequence[str], place: int) -> Iterator[str]:
    """The names behind a place, then those before it."""
    yield from (*names[place + 1 :], *names[: max(place, 0)])


@cache
def _known_facts() -> dict[str, list[EditRecord]]:
    """The shipped facts by relation, in their order."""
    found: dict[str, list[EditRecord]] = {}
    for record in read_facts("all"):
        found.setdefault(record.request.relation or "", []).append(record)
    return found


def _relation_words(records: Sequence[EditRecord]) -> set[str]:
    return _words(records[0].request.prompt)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _bare(subject: str) -> str:
    return re.sub(r"^the\s+", "", subject.strip().casefold())
