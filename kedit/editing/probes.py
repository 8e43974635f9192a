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
from collections.abc import Iterator, Sequence

from kedit.editing.kinds import KINDS, SEVERAL, kind_of, known_facts, of_kind, subjects_of, words_of
from kedit.request import EditRequest

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
    avoid |= subjects_of(request.target_new)  # of them the new target holds anyway
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
    facts = known_facts()
    assert request.subject is not None
    for relation, records in facts.items():
        own = [record.request.subject or "" for record in records]
        place = next((i for i, name in enumerate(own) if name.casefold() == _bare(request.subject)), None)
        same = words_of(records[0].request.prompt) == words_of(request.prompt)
        if same or (place is not None and _is_kind(relation, request)):
            yield from _from(own, -1 if place is None else place)
    kind = kind_of(request.prompt)
    if kind is not None:
        yield from of_kind(kind)
    else:
        pools = [list(of_kind(one)) for one in SEVERAL]
        yield from (name for turn in zip(*pools, strict=False) for name in turn)


def _is_kind(relation: str, request: EditRequest) -> bool:
    """Whether subjects of the relation can stand in the prompt: as far as its words tell."""
    kind = kind_of(request.prompt)
    return kind is None or relation in KINDS[kind] or not any(relation in own for own in KINDS.values())


def _from(names: Sequence[str], place: int) -> Iterator[str]:
    """The names behind a place, then those before it."""
    yield from (*names[place + 1 :], *names[: max(place, 0)])


def _bare(subject: str) -> str:
    return re.sub(r"^the\s+", "", subject.strip().casefold())
