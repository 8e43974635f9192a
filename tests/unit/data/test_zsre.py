"""ZsRE: its forms, what is cleaned of them, and what is refused."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kedit.data import ZsRE, read_counterfact, read_robust, read_zsre
from kedit.errors import KeditError
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.paths import ROOT, SHARED

shared = pytest.mark.skipif(
    not (SHARED / "zsre_edit.json").is_file(), reason=f"zsre_edit.json is not at {SHARED} (set KEDIT_SHARED)"
)

FLAT = {
    "case_id": 3,
    "prompt": "What city is France ruled from?",
    "target_new": "Rome",
    "ground_truth": "Paris",
    "paraphrase_prompts": "From where is France ruled?",
    "locality_prompt": "nq question: which month comes after may",
    "locality_ground_truth": "June",
    "cond": "Paris >> Rome || What city is France ruled from?",
}
MEND = {
    "subject": "France",
    "src": FLAT["prompt"],
    "pred": "Berlin",
    "rephrase": FLAT["paraphrase_prompts"],
    "alt": "Rome",
    "answers": ["Paris", "the city of Paris", "Paris "],
    "loc": FLAT["locality_prompt"],
    "loc_ans": "June",
    "cond": "Berlin >> Rome || What city is France ruled from?",
}
REP = {
    "case_id": 7,
    "prompt": FLAT["prompt"],
    "subject": "France",
    "target_new": "Rome",
    "target_true": "Paris",
    "rephrase_prompt": None,
    "rephrase_target": "Rome",
    "locality_prompt": [FLAT["locality_prompt"]],
    "locality_ground_truth": "June",
    "subject_rephrase": ["the French state", "france", "Gaul"],
}
PROBES = (
    Probe("rewrite", "What city is France ruled from?", "Rome", "Paris"),
    Probe("paraphrase", "From where is France ruled?", "Rome", "Paris"),
    Probe("neighborhood", "nq question: which month comes after may", "June", None),
)


def write(folder: Path, rows: Any, name: str = "zsre.json") -> str:
    (folder / name).write_text(json.dumps(rows), encoding="utf-8")
    return str(folder / name)


def one(folder: Path, row: dict[str, Any], clean: bool = True) -> EditRecord:
    (record,) = read_zsre(write(folder, [row]), clean)
    return record


def unlike(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


class TestForms:
    """What becomes of the records of each form."""

    def test_flat(self, tmp_path: Path) -> None:
        request = EditRequest("3", "What city is France ruled from?", None, "Rome", "Paris")
        assert one(tmp_path, FLAT) == EditRecord(request, PROBES)
        assert request.text == request.prompt

    def test_mend(self, tmp_path: Path) -> None:
        template = "What city is {} ruled from?"
        request = EditRequest("1", template, "France", "Rome", "Paris", template)
        meta = {"target_true_aliases": ["the city of Paris"]}
        assert one(tmp_path, MEND) == EditRecord(request, PROBES, meta)

    def test_mend_without_a_subject_is_as_the_flat_form(self, tmp_path: Path) -> None:
        record = one(tmp_path, unlike(MEND, "subject") | {"case_id": 3, "answers": ["Paris"]})
        assert record == one(tmp_path, FLAT)

    def test_a_flat_record_may_name_its_subject(self, tmp_path: Path) -> None:
        record = one(tmp_path, FLAT | {"subject": "France"})
        assert (record.request.prompt, record.request.subject) == ("What city is {} ruled from?", "France")
        assert record.probes == PROBES

    def test_the_records_of_rep(self, tmp_path: Path) -> None:
        path = write(tmp_path, [REP])
        assert read_zsre(path) == read_robust(path)
        (record,) = read_zsre(path)
        assert record.meta == {"subject_aliases": ["the French state", "Gaul"]}
        assert Counter(p.kind for p in record.probes) == {"rewrite": 1, "neighborhood": 1, "subject_rephrase": 2}

    def test_forms_may_be_mixed(self, tmp_path: Path) -> None:
        records = read_zsre(write(tmp_path, [MEND, FLAT, REP]))
        assert [(r.request.case_id, r.request.subject) for r in records] == [
            ("1", "France"),
            ("3", None),
            ("7", "France"),
        ]

    @pytest.mark.parametrize(
        ("loc", "answers", "probes"),
        [
            ("nq a", ["x", "y"], [Probe("neighborhood", "nq a", "x", None, ("y",))]),
            (["nq a", "nq b"], "x", [Probe("neighborhood", "nq a", "x"), Probe("neighborhood", "nq b", "x")]),
            (["nq a", "nq b"], ["x", ["y", "z"]], [Probe("neighborhood", "nq a", "x"),
                                                   Probe("neighborhood", "nq b", "y", None, ("z",))]),
            (["nq a", "nq b"], ["", "y"], [Probe("neighborhood", "nq b", "y")]),
            ("nq a", None, []),
            ("nq a", " ", []),
            (None, None, []),
        ],
    )  # fmt: skip
    def test_unrelated_questions(self, tmp_path: Path, loc: Any, answers: Any, probes: list[Probe]) -> None:
        """One without an answer is not asked: the record's own true target is none to it."""
        mend = one(tmp_path, MEND | {"loc": loc, "loc_ans": answers})
        flat = one(tmp_path, FLAT | {"locality_prompt": loc, "locality_ground_truth": answers})
        for record in (mend, flat):
            assert [probe for probe in record.probes if probe.kind == "neighborhood"] == probes


class TestCleaning:
    """What is dropped, kept and counted."""

    ROWS = (
        FLAT,
        FLAT | {"target_new": ""},
        FLAT | {"target_new": "  "},
        FLAT | {"target_new": " Paris", "prompt": "A"},
        FLAT | {"target_new": "Oslo "},
        MEND | {"alt": "the city of Paris"},
        MEND | {"alt": "", "answers": []},
        MEND | {"alt": "\tBern", "src": "Is France a country?"},
        MEND | {"answers": []},
    )

    def test_clean(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        data = ZsRE(write(tmp_path, self.ROWS))
        assert not caplog.messages
        assert data.cleaning is None
        wanted = [("Rome", "Paris"), ("Oslo", "Paris"), ("Bern", "Paris"), ("Rome", None)]
        assert [(r.request.target_new, r.request.target_true) for r in data.records] == wanted
        data.prepare(lambda records: records)
        assert caplog.messages == [
            "zsre/zsre: 9 records read, 5 dropped (3 without a target; 2 no-op edits, whose target is the true "
            "answer), 2 targets trimmed, 3 kept whose prompt has several new targets",
            "zsre/zsre: 9 records in the file, 4 to edit: 5 left out (3 without a target, 2 no-op edits)",
        ]
        card = data.describe()
        assert json.loads(json.dumps(card)) == card
        assert (card["name"], card["clean"]) == ("zsre/zsre", True)
        assert (card["in_file"], card["left_out"]) == (9, {"no_target": 3, "no_op": 2})
        counts = {"read": 9, "empty": 3, "no_op": 2, "kept": 4, "trimmed": 2, "conflicting": 3}
        assert card["cleaning"] == counts

    def test_not_clean(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        data = ZsRE(write(tmp_path, self.ROWS), clean=False)
        kept = {record.request.target_new: record for record in data.records}
        assert list(kept) == ["Rome", "Paris", "Oslo", "the city of Paris", "Bern"]
        for target in ("Paris", "the city of Paris"):
            assert kept[target].request.target_true is None
            assert [probe.rival for probe in kept[target].probes] == [None, None, None]
            assert kept[target].meta == {}
        assert caplog.messages == [
            "zsre/zsre: 9 records read, 3 dropped (3 without a target), 2 no-op edits kept, without a true target, "
            "3 targets trimmed, 4 kept whose prompt has several new targets"
        ]

    def test_a_no_op_with_other_names(self, tmp_path: Path) -> None:
        row = REP | {"target_new": "Paris"}
        with pytest.raises(KeditError, match="none of its 1 records is an edit: 0 without a target, 1 whose target"):
            read_zsre(write(tmp_path, [row]))
        record = one(tmp_path, row, clean=False)
        assert (record.request.target_new, record.request.target_true) == ("Paris", None)
        assert len(record.probes) == 4

    def test_nothing_to_say(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        assert ZsRE(write(tmp_path, [FLAT])).records
        assert caplog.messages == ["zsre/zsre: 1 records read, 0 dropped"]

    def test_it_is_said_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        data = ZsRE(write(tmp_path, self.ROWS), known=True)
        assert len(data.records) == 4
        data.prepare(lambda records: records[:1])
        assert caplog.messages[1:] == [
            "zsre/zsre: 9 records in the file, 1 to edit: 8 left out (3 without a target, 2 no-op edits, 3 not known)"
        ]

    def test_known_needs_a_true_target(self, tmp_path: Path) -> None:
        path = write(tmp_path, self.ROWS)
        with pytest.raises(
            KeditError, match=r"^data\.known: true asks .* which the 2 no-op edits .*use data\.clean: tr"
        ):
            _ = ZsRE(path, clean=False, known=True).records
        assert ZsRE(write(tmp_path, [FLAT]), clean=False, known=True).records


HERE = "record 2 (case_id 5): "


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (unlike(FLAT, "prompt"), HERE + "field 'prompt' is missing"),
        (FLAT | {"prompt": "  "}, HERE + "the prompt is empty"),
        (unlike(FLAT, "target_new"), HERE + "field 'target_new' is missing"),
        (FLAT | {"target_new": 3}, HERE + "field 'target_new' must be text, not a number"),
        (FLAT | {"ground_truth": 3}, HERE + "field 'target_true' must be text or a list of texts, not a number"),
        (FLAT | {"paraphrase_prompts": [3]}, HERE + "field 'paraphrases' must be text or a list of texts"),
        (FLAT | {"prompt": "What of {}?"}, HERE + "the prompt 'What of {}?' has a '{}' and no subject to put there; "),
        (FLAT | {"subject": " "}, HERE + "the subject is empty"),
        (FLAT | {"subject": "Peru"}, HERE + "the subject 'Peru' does not occur in the prompt"),
        (FLAT | {"locality_prompt": ["a", "b"], "locality_ground_truth": ["x"]}, HERE + "1 answers for 2 neighbors"),
        (FLAT | {"locality_prompt": 3}, HERE + "field 'neighbors' must hold texts or objects"),
        (unlike(MEND, "src"), HERE + "field 'src' is missing"),
        (unlike(MEND, "alt"), HERE + "field 'alt' is missing"),
        (MEND | {"alt": None}, HERE + "field 'alt' is missing"),
        (MEND | {"src": ["a"]}, HERE + "field 'src' must be text, not a list"),
        (MEND | {"subject": "Peru"}, HERE + "the subject 'Peru' does not occur in the prompt"),
        (MEND | {"src": "{} and {}"}, HERE + "the prompt '{} and {}' has 2 '{}'"),
        (unlike(REP, "subject"), HERE + "field 'subject' is missing"),
        ("a text", "record 2: must be an object with named fields, not text"),
    ],
)
def test_bad_record_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    path = write(tmp_path, [FLAT, bad | {"case_id": 5} if isinstance(bad, dict) else bad])
    with pytest.raises(KeditError) as caught:
        read_zsre(path)
    text = str(caught.value)
    assert text.startswith(f"{path}, {message}")
    assert text.count(path) == len(text.splitlines()) == 1


def test_nothing_left(tmp_path: Path) -> None:
    rows = [FLAT | {"target_new": ""}, FLAT | {"target_new": "Paris"}, FLAT | {"target_new": " "}]
    with pytest.raises(KeditError, match=r"zsre\.json: none of its 3 records is an edit: 2 without .*, 1 whose target"):
        read_zsre(write(tmp_path, rows))
    assert len(read_zsre(write(tmp_path, rows), clean=False)) == 1


def test_counterfact_still_wants_a_subject(tmp_path: Path) -> None:
    with pytest.raises(KeditError, match="field 'subject' is missing"):
        read_counterfact(write(tmp_path, [FLAT]))


@shared
@pytest.mark.parametrize(("clean", "kept", "trimmed"), [(True, 5790, 139), (False, 5976, 141)])
def test_the_real_file(clean: bool, kept: int, trimmed: int) -> None:
    data = ZsRE(str(SHARED / "zsre_edit.json"), clean=clean)
    card = data.describe()
    counts = {"read": 6000, "empty": 24, "no_op": 186, "kept": kept, "trimmed": trimmed, "conflicting": 0}
    assert card["cleaning"] == counts
    assert card["probes"] == {"rewrite": kept, "paraphrase": kept, "neighborhood": kept}
    raw = {str(row["case_id"]): row for row in json.loads((SHARED / "zsre_edit.json").read_text(encoding="utf-8"))}
    without_true = 0
    for record in data.records:
        request, row = record.request, raw[record.request.case_id]
        assert (request.text, request.subject, request.relation) == (row["prompt"], None, None)
        assert request.target_new == row["target_new"].strip() != request.target_true
        assert record.probes[-1] == Probe("neighborhood", row["locality_prompt"], row["locality_ground_truth"], None,
                                          ())  # fmt: skip
        without_true += request.target_true is None
    assert without_true == (0 if clean else 186)


@shared
def test_the_numbers_of_the_docs() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    found = ZsRE(str(SHARED / "zsre_edit.json"), clean=False)
    assert found.records
    assert found.cleaning is not None
    assert f"| {found.cleaning.empty} | dropped |" in page
    assert f"| {found.cleaning.no_op} | dropped | kept" in page
    assert f"| {found.cleaning.trimmed}, of them 2 no-ops | removed |" in page
    assert "| left | | 5,790 | 5,976 |" in page


@shared
def test_the_real_file_of_rep() -> None:
    path = SHARED / "rep_zsre_test.json"
    assert read_zsre(path) == read_robust(path)
