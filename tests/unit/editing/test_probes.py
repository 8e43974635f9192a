"""Paraphrases hold the prompt whole; neighbours are subjects of the shipped facts, of the same kind where it shows."""

from __future__ import annotations

import pytest

from kedit.data.readers.facts import read_facts
from kedit.editing.kinds import HINTS, KINDS, PRODUCTS, SEVERAL
from kedit.editing.probes import NEIGHBOURS, PARAPHRASES, neighbours, paraphrases
from kedit.request import EditRequest

FACTS = read_facts("all")
SUBJECTS = {
    relation: {record.request.subject for record in FACTS if record.request.relation == relation}
    for relation in {record.request.relation for record in FACTS}
}


def subjects(request: EditRequest, most: int = NEIGHBOURS) -> list[str]:
    before, after = request.prompt.split("{}")
    return [text.removeprefix(before).removesuffix(after) for text in neighbours(request, most)]


def request(prompt: str, subject: str, target: str = "x") -> EditRequest:
    return EditRequest("1", prompt, subject, target)


def test_paraphrases_hold_the_prompt() -> None:
    for prompt in ("The capital of {} is", "What is the capital of {}?"):
        one = request(prompt, "France")
        texts = paraphrases(one)
        assert len(set(texts)) == len(texts) == PARAPHRASES
        assert all(one.text in text and text != one.text for text in texts)
    assert paraphrases(one, 0) == []
    assert len(paraphrases(one, 1)) == 1


@pytest.mark.parametrize(
    ("prompt", "subject", "of"),
    [
        ("The city of {} is located in the country of", "Atlantis", {"city_country"}),  # the template of a relation
        ("The capital of {} is", "France", set(KINDS["country"])),  # its subject
        ("The mother tongue of {} is", "Danielle Darrieux", set(KINDS["person"])),  # a word of the prompt
        ("The headquarters of {} are in", "Google", set(KINDS["company"])),
        ("The author of {} is", "Hamlet", set(KINDS["work"])),
        ("{} is located in", "The Eiffel Tower", {"landmark_country", "landmark_city"}),
        ("The colour of {} is", "snow", {relation for kind in SEVERAL for relation in KINDS[kind]}),
    ],
)
def test_neighbours(prompt: str, subject: str, of: set[str]) -> None:
    found = subjects(request(prompt, subject))
    assert len(set(found)) == len(found) == NEIGHBOURS
    assert subject not in found
    known = set().union(*(SUBJECTS[relation] for relation in of))
    assert set(found) <= known
    assert found == subjects(request(prompt, subject))  # the same every time


def test_neighbours_are_not_the_target() -> None:
    assert "Spain" in subjects(request("The neighbour of {} is", "France"))
    assert "Spain" not in subjects(request("The neighbour of {} is", "France", "Spain"))
    assert len(subjects(request("The capital of {} is", "France"), 40)) == 40
    assert neighbours(EditRequest("1", "No subject here", None, "x")) == []


def test_subjects_that_the_new_target_answers_are_no_neighbours() -> None:
    hamlet = request("{} was written by", "Hamlet", "Charles Dickens")
    assert "Oliver Twist" in subjects(request("{} was written by", "Hamlet"), most=100)
    assert "Oliver Twist" not in subjects(hamlet, most=100)


def test_what_is_made_has_neighbours_of_its_own() -> None:
    assert subjects(request("{} was developed by", "Windows XP")) == list(PRODUCTS[:3])


def test_kinds_and_hints_are_of_the_shipped_facts() -> None:
    assert {relation for own in KINDS.values() for relation in own} <= SUBJECTS.keys()
    assert set(HINTS) == {*KINDS, "product"}
    assert set(SEVERAL) <= set(KINDS)
    assert all(words == words.casefold() for words in HINTS.values())
