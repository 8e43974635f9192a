"""Where references come from: a data set's records, knowledge bases, what must stay out, and the draw among them."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedit.data import read_counterfact
from kedit.errors import KeditError
from kedit.methods.steam import (
    AnchorConfig,
    Leaks,
    Pool,
    Reference,
    read_knowledge,
    read_templates,
    references_of,
    stratified,
)
from kedit.methods.steam.module import pool_of
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.paths import FIXTURES
from tests.support.steam_cases import references

MADRID = EditRecord(
    EditRequest("7", "{} is located in", "Autonomous University of Madrid", "Sweden", "Spain", "P17"),
    (
        Probe("rewrite", "Autonomous University of Madrid is located in", "Sweden", "Spain"),
        Probe("paraphrase", "Rain. Autonomous University of Madrid is in", "Sweden", "Spain"),
        Probe("neighborhood", "The Prado is located in", "Spain", "Sweden"),
        Probe("neighborhood", "The Tagus flows to", "Lisbon", "Sweden"),  # another object
    ),
    {"attribute_prompts": ["SKF, located in ", "IKEA is from"], "target_true_id": "Q29", "target_new_id": "Q34"},
)


def texts(found: list[Reference]) -> list[str]:
    return [reference.text for reference in found]


def test_a_record_says_what_is_true_before_it_is_edited() -> None:
    """Attribute prompts go on with the new object; the request and its neighbours with the true one; nothing else."""
    subject = "Autonomous University of Madrid"
    assert references_of([MADRID]) == [
        Reference("Autonomous University of Madrid is located in", "Spain", "P17", subject, "Q29"),
        Reference("The Prado is located in", "Spain", "P17", None, "Q29"),
        Reference("SKF, located in", "Sweden", "P17", None, "Q34", "7"),
        Reference("IKEA is from", "Sweden", "P17", None, "Q34", "7"),
    ]
    assert references_of([replace(MADRID, request=replace(MADRID.request, target_true=None), meta={})]) == []


def test_the_pool_of_a_file_of_counterfact() -> None:
    pool = pool_of(read_counterfact(FIXTURES / "counterfact_official.json"), AnchorConfig())
    assert texts(pool.lookup("Porto", "Q36433")) == ["The Ribeira Wharf stands in"]
    lisbon = pool.lookup("Lisbon", "Q597")
    assert len(lisbon) == 4
    assert {reference.relation for reference in lisbon} == {"P131"}
    assert {reference.answer_id for reference in lisbon} == {"Q597"}


def test_ids_and_names() -> None:
    """An id finds its object under every name, and no namesake; without one, and for those without one, names do."""
    pool = Pool(
        [
            Reference("a", "Georgia", answer_id="Q230"),
            Reference("b", "Georgia", answer_id="Q1428"),
            Reference("c", "Sakartvelo", answer_id="Q230"),
            Reference("d", " GEORGIA "),
            Reference("e", "the Georgia."),
            Reference("a", "georgia", answer_id="Q1428"),  # said before
        ]
    )
    assert len(pool) == 5
    assert texts(pool.lookup("Georgia", "Q230")) == ["a", "c", "d"]
    assert texts(pool.lookup("Georgia", "Q1428")) == ["b", "d"]
    assert texts(pool.lookup("georgia")) == ["a", "b", "d"]
    assert texts(pool.lookup("Sakartvelo")) == ["c"]
    assert pool.lookup("Rome") == []
    assert texts(pool.alike("Georgia")) == texts(pool.alike("a georgia!")) == ["a", "b", "d", "e"]


def test_the_fingerprint_of_a_pool() -> None:
    found = references("Rome")
    assert Pool(found).fingerprint == Pool(reversed(found)).fingerprint
    assert Pool(found).fingerprint != Pool(found[1:]).fingerprint
    assert Pool(found).fingerprint != Pool([replace(found[0], answer="Romes"), *found[1:]]).fingerprint


def test_what_is_edited_or_scored_stays_out() -> None:
    pool = Pool(
        [
            *references_of([MADRID]),
            Reference("The autonomous university of MADRID calls itself", "Sweden"),  # an edited subject
            Reference("Rain. Autonomous University of Madrid is in", "Sweden"),
            Reference("The Space Needle stands in", "Sweden"),  # edited in another record
            Reference("The Tagus flows to", "Sweden"),  # scored for this object
            Reference("Volvo comes from", "Sweden"),
        ]
    )
    other = EditRecord(EditRequest("8", "{} is in", "the Space Needle", "Rome"), ())
    leaks = Leaks.of([MADRID, other])
    kept = leaks.keep(pool.lookup("Sweden", "Q34"), "sweden", strict=False)
    assert texts(kept) == ["SKF, located in", "IKEA is from", "Volvo comes from"]
    assert texts(leaks.keep(pool.lookup("Sweden", "Q34"), "sweden", strict=True)) == ["Volvo comes from"]
    assert texts(Leaks.of([other]).keep(pool.lookup("Sweden", "Q34"), "sweden", strict=True)) == [
        "SKF, located in",  # the own attribute prompts of a record that is not edited here
        "IKEA is from",
        "The autonomous university of MADRID calls itself",
        "Rain. Autonomous University of Madrid is in",
        "The Tagus flows to",
        "Volvo comes from",
    ]


# -- the draw ---------------------------------------------------------------------------------------------


def strata(**sizes: int) -> list[Reference]:
    return [Reference(f"{name} {i}", "Rome", name) for name, n in sizes.items() for i in range(n)]


def counts(found: list[Reference], chosen: list[int]) -> Counter[str | None]:
    assert len(set(chosen)) == len(chosen)
    return Counter(found[i].relation for i in chosen)


@pytest.mark.parametrize("most", [1, 2, 7, 16, 31, 32])
def test_no_relation_outweighs_another(most: int) -> None:
    found = strata(a=100, b=40, c=60)
    shares = counts(found, stratified(found, most, "seed"))
    assert sum(shares.values()) == most
    assert max(shares.values()) - min(shares[name] for name in "abc") <= 1


def test_small_relations_are_taken_whole() -> None:
    found = strata(a=100, b=3, c=5)
    assert counts(found, stratified(found, 20, "seed")) == {"a": 10, "b": 3, "c": 5}  # half of 20 at most
    assert counts(found, stratified(found, 20, "seed", cap=20)) == {"a": 12, "b": 3, "c": 5}
    assert counts(found, stratified(found, 20, "seed", cap=4)) == {"a": 4, "b": 3, "c": 4}
    assert counts(found, stratified(found, 21, "seed"))["a"] == 11  # rounded up
    alone = strata(a=100)
    assert len(stratified(alone, 20, "seed")) == 20
    assert len(stratified(strata(a=6), 20, "seed")) == 6
    assert stratified([], 20, "seed") == []


def test_the_draw_is_that_of_its_seed() -> None:
    """And not of the order in which references come, nor of the global seed."""
    found = [*strata(a=30, b=30), *(Reference(f"none {i}", "Rome") for i in range(30))]
    drawn = texts([found[i] for i in stratified(found, 12, "seed")])
    random.seed(5)
    assert texts([found[i] for i in stratified(found, 12, "seed")]) == drawn
    mixed = random.Random(1).sample(found, len(found))
    assert texts([mixed[i] for i in stratified(mixed, 12, "seed")]) == drawn
    assert texts([found[i] for i in stratified(found, 12, "other")]) != drawn
    firsts = sorted(text for text in texts(found) if text.startswith("a "))[:4]
    assert sorted(text for text in drawn if text.startswith("a ")) != firsts, "nothing was shuffled"


# -- knowledge bases --------------------------------------------------------------------------------------

TEMPLATES = {"P36": ["The capital of {} is", "{} has its seat of government in"], "P17": "{} lies in"}


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_knowledge(tmp_path: Path) -> None:
    templates = write(tmp_path, "templates.json", json.dumps(TEMPLATES))
    lines = "France\tP36\tQ90\tParis\n\nUlm\tP17\t\tGermany\nItaly\tP36\tQ220\tRome \n"
    table = write(tmp_path, "facts.tsv", lines)
    rows = [
        {"subject": "Ulm", "relation": "P17", "object": "Germany", "object_id": "Q183"},
        {"prompt": "Einstein was born in\u2028", "relation": "born", "object": "Germany"},
        {"prompt": "People in Berlin speak", "object": "German", "subject": None},
    ]
    more = write(tmp_path, "facts.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    pool = pool_of([MADRID], AnchorConfig(knowledge=[table, more], templates=templates))
    assert len(pool) == 4 + 2 + 1 + 2 + 2  # Ulm's line in both files is one reference
    assert pool.lookup("Rome", "Q220") == [
        Reference("The capital of Italy is", "Rome", "P36", "Italy", "Q220"),
        Reference("Italy has its seat of government in", "Rome", "P36", "Italy", "Q220"),
    ]
    assert texts(pool.lookup("germany")) == ["Ulm lies in", "Einstein was born in"]
    assert pool.lookup("German") == [Reference("People in Berlin speak", "German")]
    assert read_templates(templates) == {"P36": TEMPLATES["P36"], "P17": [TEMPLATES["P17"]]}


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("kb.tsv", "France\tP36\tParis", "line 3: 3 columns; it needs subject, relation, object_id, object"),
        ("kb.tsv", "France\tP99\t\tParis", "line 3: no template for relation 'P99'; add it to model.anchors.templates"),
        ("kb.tsv", "France\tP36\tQ90\t ", "line 3: the object is missing"),
        ("kb.tsv", "\tP36\tQ90\tParis", "line 3: it needs a subject and a relation, or a prompt"),
        ("kb.jsonl", '{"object": "Paris"', "line 3: not JSON: "),
        ("kb.jsonl", '["Paris"]', "line 3: it must be a JSON object"),
        ("kb.jsonl", '{"object": 3, "prompt": "a"}', "line 3: field 'object' must be text"),
        ("kb.jsonl", '{"object": "Paris", "subject": "France"}', "line 3: it needs a subject and a relation"),
        ("kb.jsonl", '{"prompt": "The capital of France is"}', "line 3: the object is missing"),
    ],
)
def test_a_bad_line_is_named(name: str, line: str, message: str, tmp_path: Path) -> None:
    good = "Ulm\tP17\t\tGermany" if name == "kb.tsv" else '{"prompt": "Ulm lies in", "object": "Germany"}'
    path = write(tmp_path, name, f"{good}\n\n{line}\n{good}\n")
    with pytest.raises(KeditError) as caught:
        read_knowledge(path, {"P36": ["{} a"], "P17": ["{} b"]})
    assert str(caught.value).startswith(f"{path}, {message}")


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeditError, match=r"nothing\.tsv: no such file"):
        read_knowledge(tmp_path / "nothing.tsv", {})
    with pytest.raises(KeditError, match=r"empty\.tsv: there is no triple in it"):
        read_knowledge(write(tmp_path, "empty.tsv", "\n\n"), {})
    (tmp_path / "odd.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KeditError, match=r"odd\.tsv: is not UTF-8 text"):
        read_knowledge(tmp_path / "odd.tsv", {})
    for text, message in [
        ("{", "not JSON"),
        ("[]", "it must be a JSON object, relation to templates"),
        ('{"P36": "The capital is"}', "relation 'P36' needs templates with exactly one {} each"),
        ('{"P36": ["{} and {}"]}', "relation 'P36' needs templates"),
        ('{"P36": []}', "relation 'P36' needs templates"),
        ('{"P36": 3}', "relation 'P36' needs templates"),
    ]:
        path = write(tmp_path, "templates.json", text)
        with pytest.raises(KeditError) as caught:
            read_templates(path)
        assert str(caught.value).startswith(f"{path}: {message}")


def test_options_that_contradict_each_other() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"n_min": 9, "n_max": 8}, "model.anchors.n_min: 9 is more than n_max, 8"),
        ({"candidates": 8}, "model.anchors.candidates: 8 is less than n_max, 32"),
        ({"n_min": 0}, "model.anchors.n_min: 0 is less than 1"),
    ]
    for options, message in cases:
        with pytest.raises(KeditError, match=message):
            AnchorConfig(**options)
