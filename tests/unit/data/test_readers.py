"""Readers: every format, every complaint, and the real files where they are at hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.data import read_counterfact, read_facts, read_records, read_robust
from kedit.errors import KeditError
from kedit.request import EditRecord, Probe
from tests.support.code_blocks import blocks_of
from tests.support.paths import FIXTURES, ROOT, SHARED

GOOD = {"case_id": 5, "prompt": "The sky over Skye is", "subject": "Skye", "target_new": "green"}


def texts(record: EditRecord, kind: str) -> list[str]:
    return [probe.text for probe in record.probes if probe.kind == kind]


def write(folder: Path, value: Any, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_official_counterfact() -> None:
    tower, language = read_counterfact(FIXTURES / "counterfact_official.json")
    request = tower.request
    assert (request.case_id, request.prompt, request.subject) == (
        "0",
        "{} was built in the city of",
        "The Lantern Tower",
    )
    assert (request.target_new, request.target_true, request.relation) == ("Porto", "Lisbon", "P131")
    assert Counter(probe.kind for probe in tower.probes) == {"rewrite": 1, "paraphrase": 2, "neighborhood": 3}
    assert tower.probes[0] == Probe("rewrite", "The Lantern Tower was built in the city of", "Porto", "Lisbon")
    neighbours = [probe for probe in tower.probes if probe.kind == "neighborhood"]
    assert all((probe.answer, probe.rival) == ("Lisbon", "Porto") for probe in neighbours)
    assert tower.meta == {
        "attribute_prompts": ["The Ribeira Wharf stands in"],
        "generation_prompts": ["People come to The Lantern Tower because"],
        "target_new_id": "Q36433",
        "target_true_id": "Q597",
    }
    assert language.request.text == "The first language of Marieke Boomgaard is"


def test_flat_counterfact_in_all_its_spellings() -> None:
    tower, language, captain, owner = read_counterfact(FIXTURES / "counterfact_flat.json")
    assert tower.request.prompt == tower.request.relation == "{} was built in the city of"
    assert (tower.request.target_new, tower.request.target_true) == ("Porto", "Lisbon")
    assert texts(tower, "paraphrase") == ["The Lantern Tower stands in"]
    assert tower.probes[-1] == Probe("neighborhood", "The Tile Arcade stands in", "Lisbon", "Porto")

    assert (language.request.case_id, language.request.target_true) == ("toy_00001", "Dutch")
    assert len(texts(language, "paraphrase")) == 2
    assert language.probes[-1] == Probe("neighborhood", "At home Joost Windt speaks", "Dutch", "Finnish")

    assert captain.request.case_id == "9"
    assert captain.request.target_true is None
    assert captain.probes[0].rival is None
    assert captain.probes[-1] == Probe("neighborhood", "which month comes after may", "June", None)

    assert owner.request.case_id == "4"  # no name of its own: its position
    assert [probe for probe in owner.probes if probe.kind in ("neighborhood", "portability")] == [
        Probe("neighborhood", "The home port of the Halcyon is", "Cork", None, ("Cobh",)),
        Probe("portability", "The owner of the Halcyon was founded in", "1902", None),
    ]


def test_robust_queries() -> None:
    tower, profession = read_robust(FIXTURES / "robust.json")
    assert len(texts(tower, "paraphrase")) == 2
    assert texts(tower, "rewording") == ["You find the tower in", "The Lantern Tower was raised in"]
    assert tower.meta["subject_aliases"] == ["The Tower of Lanterns", "The Lighthouse Hall"]
    assert texts(tower, "subject_rephrase") == [
        "The Tower of Lanterns, located in",
        "The Lighthouse Hall, located in",
    ]
    assert tower.probes[-1].answer == "Porto"
    assert tower.probes[-1].rival == "Lisbon"
    assert profession.probes[1] == Probe("neighborhood", "nq question: which month comes after may", "June", None)
    assert texts(profession, "subject_rephrase") == ["What is the profession of Marchetti, Odile?"]


def test_own_form() -> None:
    tower, language, captain, port = read_records(FIXTURES / "records.jsonl")
    assert tower.request.relation == "city"
    assert texts(tower, "paraphrase") == ["The Lantern Tower stands in", "You find The Lantern Tower in"]
    assert [probe for probe in tower.probes if probe.kind == "neighborhood"] == [
        Probe("neighborhood", "The Tile Arcade stands in", "Lisbon", "Porto"),
        Probe("neighborhood", "The Fado House was built in the city of", "Lisbon", "Porto"),
        Probe("neighborhood", "The river through Cork is the", "Lee", None),
    ]
    portable = next(probe for probe in tower.probes if probe.kind == "portability")
    assert (portable.answer, portable.rival) == ("Portugal", "Spain")
    assert texts(tower, "subject_rephrase") == ["The Tower of Lanterns was built in the city of"]
    assert tower.meta == {
        "subject_aliases": ["The Tower of Lanterns"],
        "split": "test",
        "known": True,
        "greedy": "Lisbon, in",
    }
    assert language.request.prompt == "The first language of {} is"
    assert language.request.case_id == "2"
    assert [captain.request.case_id, port.request.case_id] == ["12", "12-2"]


def test_json_list_and_jsonl_are_the_same(tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"case_id": 6, "subject": "sky"}]
    as_lines = "\n".join(json.dumps(row) for row in rows)
    plain = read_records(write(tmp_path, rows))
    assert plain == read_records(write(tmp_path, as_lines, "data.jsonl"))
    assert plain == read_records(write(tmp_path, "\ufeff" + as_lines + "\n", "bom.jsonl"))


@pytest.mark.parametrize(
    ("prompt", "subject", "template"),
    [
        ("which song in the list has i in it", "i", "which song in the list has {} in it"),
        ("Paris is to Paris what", "Paris", "{} is to Paris what"),
        ("The Skyes are", "Skye", "The {}s are"),
        ("C++ is used for", "C++", "{} is used for"),
        ("In {} one speaks", "Cork", "In {} one speaks"),
    ],
)
def test_template_is_rebuilt(tmp_path: Path, prompt: str, subject: str, template: str) -> None:
    (record,) = read_records(write(tmp_path, [GOOD | {"prompt": prompt, "subject": subject}]))
    assert record.request.prompt == template
    assert "{}" in prompt or record.request.text == prompt


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


HERE = "record 2 (case_id 5): "


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without("target_new"), HERE + "field 'target_new' is missing"),
        (without("subject"), HERE + "field 'subject' is missing"),
        (without("prompt"), HERE + "field 'prompt' is missing"),
        (without("prompt") | {"prompt": None}, HERE + "field 'prompt' is missing"),
        (GOOD | {"target_new": 1984}, HERE + "field 'target_new' must be text, not a number"),
        (GOOD | {"target_new": "  "}, HERE + "target_new is empty"),
        (GOOD | {"target_true": "green "}, HERE + "target_new equals the true target"),
        (GOOD | {"subject": "skye"}, HERE + "the subject 'skye' does not occur in the prompt"),
        (GOOD | {"subject": " "}, HERE + "the subject is empty"),
        (GOOD | {"prompt": "{} and {} are"}, HERE + "the prompt '{} and {} are' has 2 '{}'"),
        (GOOD | {"neighbors": ["The sky over Rum is"]}, HERE + "a neighbor has no answer"),
        (GOOD | {"neighbors": [3]}, HERE + "field 'neighbors' must hold texts or objects"),
        (
            GOOD | {"neighbors": [{"answer": "x"}]},
            "record 2 (case_id 5), neighbors 1: field 'prompt' is missing",
        ),
        (
            GOOD | {"neighbors": ["a", "b", "c"], "locality_ground_truth": ["x", "y"]},
            HERE + "2 answers for 3 neighbors",
        ),
        (GOOD | {"paraphrases": [1]}, HERE + "field 'paraphrases' must be text or a list of texts"),
        (GOOD | {"portability": [{"prompt": "It follows that"}]}, "portability 1: field 'answer' is missing"),
        (GOOD | {"paraphrase": "The sky is"}, "unknown field 'paraphrase'; did you mean 'paraphrases'?"),
        ("not an object", "record 2: must be an object with named fields, not text"),
    ],
)
def test_bad_record_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    path = write(tmp_path, [GOOD | {"case_id": 1}, bad])
    with pytest.raises(KeditError) as caught:
        read_records(path)
    text = str(caught.value)
    assert text.startswith(f"{path}, record 2")
    assert message in text
    assert text.count(str(path)) == 1
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("reader", [read_counterfact, read_robust, read_records])
def test_bad_file_is_named(tmp_path: Path, reader: Callable[[Path], list[EditRecord]]) -> None:
    def complaint(path: Path) -> str:
        with pytest.raises(KeditError) as caught:
            reader(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    cut = json.dumps([GOOD, GOOD], indent=1)[:-30]
    assert "line 11, column 20: not valid JSON" in complaint(write(tmp_path, cut))
    lines = json.dumps(GOOD) + "\n\n" + json.dumps(GOOD)[:-4]
    assert "line 3, column" in complaint(write(tmp_path, lines, "cut.jsonl"))
    assert "name it .jsonl" in complaint(write(tmp_path, json.dumps(GOOD) + "\n" + json.dumps(GOOD)))
    assert "holds an object, not a list" in complaint(write(tmp_path, GOOD))
    assert "holds no records" in complaint(write(tmp_path, []))
    assert "holds no records" in complaint(write(tmp_path, ""))
    assert "holds no records" in complaint(write(tmp_path, "\n", "empty.jsonl"))
    assert "no such file" in complaint(tmp_path / "absent.json")
    assert "cannot be read" in complaint(tmp_path)
    (tmp_path / "latin.json").write_bytes('["é"]'.encode("latin-1"))
    assert "is not UTF-8 text" in complaint(tmp_path / "latin.json")


def test_wrong_reader_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeditError, match="'subject_rephrase' is missing"):
        read_robust(FIXTURES / "counterfact_flat.json")
    several = [{"case_id": 1, "requested_rewrite": [{}, {}]}]
    with pytest.raises(KeditError, match="'requested_rewrite' must be an object, not a list"):
        read_counterfact(write(tmp_path, several))


REAL = [
    (read_counterfact, "counterfact_edit.json", 8000, {"paraphrase": 8000, "neighborhood": 8000}),
    (read_counterfact, "counterfact_rich.json", 400, {"paraphrase": 800, "neighborhood": 2000}),
    (read_counterfact, "qaedit.json", 800, {"paraphrase": 800, "neighborhood": 4000}),
    (
        read_robust,
        "rep_counterfact_valid.json",
        100,
        {"paraphrase": 200, "neighborhood": 1000, "rewording": 972, "subject_rephrase": 1000},
    ),
    (
        read_robust,
        "rep_counterfact_test.json",
        400,
        {"paraphrase": 800, "neighborhood": 4000, "rewording": 3811, "subject_rephrase": 3993},
    ),
    (read_robust, "rep_zsre_test.json", 400, {"neighborhood": 400, "subject_rephrase": 3966}),
]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"public data sets are not at {SHARED} (set KEDIT_SHARED)")
@pytest.mark.parametrize(("reader", "name", "count", "probes"), REAL, ids=[row[1] for row in REAL])
def test_real_files(reader: Callable[[Path], list[EditRecord]], name: str, count: int, probes: dict[str, int]) -> None:
    records = reader(SHARED / name)
    raw = json.loads((SHARED / name).read_text(encoding="utf-8"))
    assert len({record.request.case_id for record in records}) == len(records) == count
    assert Counter(probe.kind for record in records for probe in record.probes) == {"rewrite": count} | probes
    assert [record.request.text for record in records] == [row["prompt"] for row in raw]
    for record in records:
        assert all(probe.text and probe.text == probe.text.strip() for probe in record.probes)
        assert all(probe.answer and probe.answer != probe.rival for probe in record.probes)


def test_facts_of_kedit() -> None:
    everything = read_facts("all")
    splits = Counter(record.meta["split"] for record in everything)
    assert set(splits) == {"train", "validation", "test"}
    assert [len(read_facts(split)) for split in splits] == list(splits.values())
    assert len({record.request.case_id for record in everything}) == len(everything)
    for record in everything:
        assert record.request.target_true
        assert isinstance(record.meta["known"], bool)
        assert {"rewrite", "paraphrase", "neighborhood"} <= {probe.kind for probe in record.probes}
    with pytest.raises(KeditError, match=r"data\.split: Facts has no split 'dev'; it has .*validation and all"):
        read_facts("dev")


def test_examples_of_the_docs(tmp_path: Path) -> None:
    small, rich = [block.text for block in blocks_of(ROOT / "docs" / "data.md") if block.language == "json"]
    assert len(read_records(write(tmp_path, small, "small.jsonl"))) == 2
    (record,) = read_records(write(tmp_path, f"[{rich}]"))
    kinds = {"rewrite", "paraphrase", "neighborhood", "portability", "subject_rephrase"}
    assert {probe.kind for probe in record.probes} == kinds
