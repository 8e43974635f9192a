"""What a user asks for becomes the requests that a reader would make of the same facts, or a line that says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kedit.data.readers.jsonl import read_records
from kedit.editing.requests import many_requests, one_request, with_slot
from kedit.errors import KeditError
from kedit.request import EditRecord, EditRequest


def test_one_line_is_the_record_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    fact = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Lyon", "target_true": "Paris"}
    path.write_text(json.dumps(fact) + "\n")
    read = read_records(path)[0].request
    assert one_request("The capital of {} is", "France", "Lyon", "Paris") == read
    assert one_request("The capital of France is ", "France", "Lyon", "Paris") == read
    assert many_requests(path) == [read]
    assert many_requests([{**fact, "target": "Lyon"} | {"true_target": "Paris"}][:1]) == [read]


@pytest.mark.parametrize(
    ("prompt", "subject", "template"),
    [
        ("The capital of {} is", "France", "The capital of {} is"),
        ("France has the capital", "France", "{} has the capital"),
        ("Which song has i in it", "i", "Which song has {} in it"),  # the word, not the letter of "which"
        ("法国的首都是", "法国", "{}的首都是"),
        ("A {{}} and {subject} of", "x", "A {{}} and {subject} of"),
    ],
)
def test_the_place_of_the_subject(prompt: str, subject: str, template: str) -> None:
    assert with_slot(prompt, subject) == template


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("The capital of is", "France", "Lyon"), r"has no \{\} and does not name the subject 'France'"),
        (("The capital of france is", "France", "Lyon"), "differs in case"),
        (("France, oh France, is", "France", "Lyon"), "names 'France' 2 times: put {} where"),
        (("{} and {} is", "France", "Lyon"), "has 2 {}; it needs one"),
        (("The capital of {} is", "", "Lyon"), "subject: it is empty"),
        (("The capital of {} is", "France", " "), "target: it is empty"),
        (("", "France", "Lyon"), "prompt: it is empty"),
        ((None, "France", None), "prompt and target missing"),
        (("The capital of {} is", "France", 3), "target: expects a text, not 3"),
        (("The capital of {} is", "France", "Paris", "Paris"), "^target equals the true target"),
        (("The capital of {} is", "Fra\0nce", "Lyon"), "NUL"),
    ],
)
def test_bad_facts(given: tuple[Any, ...], why: str) -> None:
    with pytest.raises(KeditError, match=why.replace("{", r"\{").replace("\\\\", "\\") if "\\" not in why else why):
        one_request(*given)


def test_lists() -> None:
    request = EditRequest("a", "The capital of {} is", "France", "Lyon")
    mapping = {"prompt": "{} is in", "subject": "Rome", "target": "Spain", "true_target": "Italy"}
    found = many_requests([request, EditRecord(EditRequest("b", "{} is", "x", "y"), ()), mapping])
    assert found[:2] == [request, EditRequest("b", "{} is", "x", "y")]
    assert (found[2].case_id, found[2].target_new, found[2].target_true) == ("3", "Spain", "Italy")
    assert many_requests(request) == [request]
    assert many_requests(mapping)[0].subject == "Rome"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([], "the list is empty"),
        (3, "expects a list of requests"),
        ([3], "number 1: expects prompt, subject and target, not 3"),
        ([{"prompt": "{} is", "subject": "x", "target": "y", "colour": "red"}], "number 1: there is no field 'colour'"),
        ([{"prompt": "{} is", "subject": "x"}], "number 1.*'target"),
        ([{"prompt": "{} is", "subject": "x", "target": "y", "id": "1"}] * 2, "2 have the case_id '1'"),
        ("no/such.jsonl", "no/such.jsonl"),
    ],
)
def test_bad_lists(given: Any, why: str) -> None:
    with pytest.raises(KeditError, match=why):
        many_requests(given)
