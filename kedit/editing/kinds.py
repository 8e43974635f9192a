"""What kind of thing a prompt asks about, as far as its words tell, and other things of that kind.

Most are subjects of the facts that ship with kedit. A name is all that a neighbour needs: no answer is known of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType

from kedit.data.readers.facts import read_facts
from kedit.request import EditRecord

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

PRODUCTS = ("Photoshop", "the PlayStation", "the Boeing 747", "Gmail", "the Walkman", "the Ford Mustang", "Windows XP")
"""Things that are made, of which no facts ship."""

HINTS: Mapping[str, str] = MappingProxyType(
    {
        "person": (
            "tongue born occupation profession citizenship plays played sport wife husband married died position "
            "instrument speaks politician actor singer works worked"
        ),
        "company": "headquarter headquarters headquartered founded founder company ceo",
        "product": "developed developer manufactured manufacturer produced product maker made",
        "work": "author written wrote novel book film directed composed painted song play",
        "country": "capital language currency continent president population government religion",
        "city": "city mayor twin town",
        "landmark": "located tower building museum bridge stands found",
    }
)
"""Words of a prompt that tell what its subject is; the kinds are tried in this order."""

SEVERAL = ("person", "city", "company")
"""The kinds that are asked where nothing tells."""


def kind_of(prompt: str) -> str | None:
    """What a prompt's subject is, or None where no word of it tells."""
    words = words_of(prompt)
    return next((kind for kind, hints in HINTS.items() if words & set(hints.split())), None)


def of_kind(kind: str) -> Iterator[str]:
    """Subjects of the kind; those of facts from one target to the next, so that the first few differ."""
    if kind == "product":
        yield from PRODUCTS
    for relation in KINDS.get(kind, ()):
        by_target: dict[str | None, list[str]] = {}
        for record in known_facts()[relation]:
            by_target.setdefault(record.request.target_true, []).append(record.request.subject or "")
        pools = list(by_target.values())
        yield from (pool[turn] for turn in range(max(map(len, pools))) for pool in pools if turn < len(pool))


@cache
def known_facts() -> dict[str, list[EditRecord]]:
    """The shipped facts by relation, in their order."""
    found: dict[str, list[EditRecord]] = {}
    for record in read_facts("all"):
        found.setdefault(record.request.relation or "", []).append(record)
    return found


def subjects_of(target: str) -> set[str]:
    """Subjects, case apart, of the shipped facts that the target answers."""
    requests = [record.request for records in known_facts().values() for record in records]
    return {
        r.subject.casefold() for r in requests if r.subject and (r.target_true or "").casefold() == target.casefold()
    }


def words_of(text: str) -> set[str]:
    """The words of a text, case apart."""
    return set(re.findall(r"\w+", text.casefold()))
