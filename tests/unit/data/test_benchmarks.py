"""The readers of published benchmarks: what they make of a record, what they leave out, what they refuse."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedit.data import (
    KnowEdit,
    QAEdit,
    RippleEdits,
    UnKE,
    WikiBigEdit,
    read_knowedit,
    read_qaedit,
    read_ripple_edits,
    read_unke,
    read_wikibigedit,
)
from kedit.data.choosing import with_chosen_probes
from kedit.data.readers.any_format import FORMATS, format_of, read_any
from kedit.data.readers.ripple_phrases import PHRASES, fact_in
from kedit.errors import KeditError
from kedit.request import Condition, EditRecord, Probe, fingerprint_of
from tests.support import benchmark_records as made
from tests.support.paths import SHARED


def write(folder: Path, rows: Any, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def of_kind(record: EditRecord, kind: str) -> list[Probe]:
    return [probe for probe in record.probes if probe.kind == kind]


def test_knowedit(tmp_path: Path) -> None:
    left = Counter[str]()
    ada, tower = read_knowedit(write(tmp_path, made.KNOWEDIT), left)
    assert left == {"no_subject": 1, "no_target": 1, "no_op": 1}
    request = ada.request
    assert (request.prompt, request.subject) == ("The name of the country of citizenship of {} is", "Ada Pell")
    assert (request.target_new, request.target_true) == ("Norway", "Chile")
    assert [probe.text for probe in of_kind(ada, "paraphrase")] == ["Ada Pell is a citizen of"]
    assert of_kind(ada, "portability") == [  # the one without an answer is passed over
        Probe("portability", "The capital of Ada Pell's country is", "Oslo", None, ("Christiania",), group="Reasoning"),
        Probe("portability", "The country of citizenship of A. Pell is", "Norway", group="Subject_Aliasing"),
    ]
    mother, forgotten = of_kind(ada, "neighborhood")
    assert (mother.answer, mother.rival, mother.subkind) == ("Mina Olt", None, "neighborhood.relation_specificity")
    assert (forgotten.answer, forgotten.rival, forgotten.group) == ("Chile", "Norway", "Forgetfulness")
    assert tower.request.subject == "The Salt Tower"  # as the prompt spells it
    assert (tower.request.target_new, tower.request.target_true) == ("Porto", None)
    assert [probe.kind for probe in tower.probes] == ["rewrite"]


def test_wikibio(tmp_path: Path) -> None:
    (silas,) = read_knowedit(write(tmp_path, made.WIKIBIO))
    assert silas.request.prompt == "This is a passage about {}. Silas Wren was a captain."
    assert silas.request.target_new == "He was born in Cork in 1802 and commanded the Halcyon."
    assert [probe.subkind for probe in silas.probes] == ["rewrite", "neighborhood.relation_specificity"]


def test_wikibigedit(tmp_path: Path) -> None:
    hall, orrery = read_wikibigedit(write(tmp_path, made.WIKIBIGEDIT))
    assert (hall.request.text, hall.request.target_new) == ("In which town is Corn Hall located?", "Ulm")
    assert (hall.request.relation, hall.meta) == ("located in", {"tag": "new"})
    assert [(probe.subkind, probe.answer) for probe in hall.probes] == [
        ("rewrite", "Ulm"),
        ("paraphrase.rephrase", "Ulm"),
        ("paraphrase.personas", "Ulm"),
        ("neighborhood", "Bern"),
        ("portability.multi_hop", "the Danube"),
    ]
    assert [probe.kind for probe in orrery.probes] == ["rewrite"]
    (flat,) = read_wikibigedit(write(tmp_path, made.WIKIBIGEDIT_FLAT))
    assert [probe.subkind for probe in flat.probes] == ["rewrite", "paraphrase", "neighborhood"]


def test_qaedit(tmp_path: Path) -> None:
    left = Counter[str]()
    (orrery,) = read_qaedit(write(tmp_path, made.QAEDIT), left)
    assert left == {"no_subject": 1}
    assert (orrery.request.case_id, orrery.request.target_new, orrery.meta) == ("31", "Ada Pell", {"source": "NQ"})
    assert [(probe.kind, probe.answer) for probe in orrery.probes] == [
        ("rewrite", "Ada Pell"),
        ("paraphrase", "Ada Pell"),
        ("neighborhood", "June"),
    ]


def test_ripple_edits(tmp_path: Path) -> None:
    left = Counter[str]()
    ada, ulm = read_ripple_edits(write(tmp_path, made.RIPPLE), left)
    assert left == {"no_subject": 1}  # a relation without a phrase
    request = ada.request
    assert (request.text, request.subject) == (made.CITIZEN, "Ada Pell")
    assert (request.target_new, request.target_true) == ("Norway", "Chile")
    assert (request.relation, ada.meta) == ("COUNTRY_OF_CITIZENSHIP", {"example_type": "popular"})
    assert [(probe.group, probe.answer, probe.test) for probe in ada.probes[1:]] == [
        ("Logical_Generalization", "Ida Pell", "any 1"),
        ("Logical_Generalization", "Ida Pell", "any 1"),  # of several queries the first answer of each
        ("Logical_Generalization", "Per", "all 2"),
        ("Logical_Generalization", "Tess", "all 2"),
        ("Compositionality_I", "Oslo", None),
        ("Subject_Aliasing", "Norway", None),
        ("Relation_Specificity", "Mina Olt", None),
        ("Forgetfulness", "Chile", None),
    ]
    by_group = {probe.group: probe for probe in ada.probes}
    assert by_group["Relation_Specificity"].aliases == ("M. Olt",)  # no single letter
    assert by_group["Subject_Aliasing"].rival == "Chile"
    assert (by_group["Forgetfulness"].kind, by_group["Forgetfulness"].rival) == ("neighborhood", "Norway")
    assert by_group["Compositionality_I"].conditions == (
        Condition("The name of the capital city of Norway is", (("Oslo", "Christiania"),)),
        Condition("The name of the king of Norway is", (("Harald",),)),
    )
    assert (ulm.request.subject, ulm.request.target_true, len(ulm.probes)) == ("Ulm", None, 1)


def test_both_spellings_of_relation_specificity_and_of_the_old_fact(tmp_path: Path) -> None:
    (row,) = made.RIPPLE[:1]
    edit = dict(row["edit"])
    edit["previous_fact"] = edit.pop("original_fact")
    other = {("Relation_Specificity" if name == "Relation_Specifity" else name): value for name, value in row.items()}
    both = [read_ripple_edits(write(tmp_path, [one]))[0] for one in (row, other | {"edit": edit})]
    assert both[0] == both[1]


@pytest.mark.parametrize("relation", PHRASES)
def test_every_phrase_gives_subject_and_target(relation: str) -> None:
    stem = PHRASES[relation].format("This is Us")
    fact = fact_in(f"{stem} Life is good.", relation, f"{stem} The Hague.")
    assert fact is not None
    assert (fact.subject, fact.target, fact.target_true) == ("This is Us", "Life is good", "The Hague")
    assert f"{fact.before}This is Us{fact.behind}" == stem


def test_a_sentence_that_may_be_read_in_two_ways() -> None:
    sentence = "The name of the author of What is Love is Ada Pell."
    fact = fact_in(sentence, "AUTHOR", "The name of the author of What is Love is Per Holm.")
    assert fact is not None
    assert (fact.subject, fact.target) == ("What is Love", "Ada Pell")
    fact = fact_in("The name of the author of Opus 7 is What is Love.", "AUTHOR")
    assert fact is not None
    assert (fact.subject, fact.target) == ("Opus 7", "What is Love")
    fact = fact_in("The place of birth of Ada is Ulm.", "PLACE_OF_BIRTH", "The place of birth of Odo is Bern.")
    assert fact is not None
    assert (fact.subject, fact.target_true) == ("Ada", None)  # an old fact about somebody else
    assert fact_in("Ada was born in Ulm.", "PLACE_OF_BIRTH") is None
    assert fact_in("The place of birth of Ada is .", "PLACE_OF_BIRTH") is None


def test_unke_and_akew(tmp_path: Path) -> None:
    (voyage,) = read_unke(write(tmp_path, made.UNKE))
    assert (voyage.request.subject, voyage.request.text) == (None, "What is known of the Orrery's last voyage?")
    assert voyage.request.target_new.startswith("The Orrery left Cork")
    assert [(probe.subkind, probe.text) for probe in voyage.probes[1:]] == [
        ("paraphrase", "What do you know about how the Orrery sailed last?"),
        ("portability.sub_question", "Where did the Orrery leave from?"),
        ("portability.sub_question", "What did it carry?"),
    ]
    (joos,) = read_unke(write(tmp_path, made.AKEW))
    assert (joos.request.text, joos.request.target_new[:19]) == (
        "What is the mother tongue of Joos Wind?",
        "Joos Wind grew up w",
    )
    assert [probe.answer for probe in of_kind(joos, "portability")] == ["English songs", "English"]
    several = [made.AKEW[0] | {"requested_rewrite": [made.AKEW[0]["requested_rewrite"]] * 2}]
    assert read_unke(write(tmp_path, several)) == [joos]  # of several rewrites the first


def changed(rows: made.Rows, **fields: Any) -> made.Rows:
    """The first row with other fields; None takes one away."""
    row = {**rows[0], **fields}
    return [{name: value for name, value in row.items() if value is not None}]


@pytest.mark.parametrize(
    ("reader", "rows", "message"),
    [
        (read_knowedit, changed(made.KNOWEDIT, prompt=None), "record 1: field 'prompt' is missing"),
        (read_knowedit, changed(made.KNOWEDIT, target_new=3), "field 'target_new' must be text, not a number"),
        (read_knowedit, changed(made.KNOWEDIT, ground_truth={"a": "b"}), "field 'target_true' must be text or a list"),
        (
            read_knowedit,
            changed(made.KNOWEDIT, locality={"Forgetfulness": [3]}),
            "field 'neighbors' must hold texts or objects",
        ),
        (read_wikibigedit, changed(made.WIKIBIGEDIT, ans=None), "record 1: field 'ans' is missing"),
        (read_wikibigedit, changed(made.WIKIBIGEDIT, mhop=[3]), "must be text or a list of texts, not a number"),
        (read_qaedit, changed(made.QAEDIT, subject=None), "(case_id 31): field 'subject' is missing"),
        (read_ripple_edits, changed(made.RIPPLE, edit=None), "record 1: field 'edit' is missing"),
        (read_ripple_edits, changed(made.RIPPLE, edit="x"), "record 1: field 'edit' must be an object, not text"),
        (
            read_ripple_edits,
            changed(made.RIPPLE, Forgetfulness=[{"test_queries": [{"prompt": "x", "answers": ["y"]}]}]),
            "Forgetfulness 1, test_queries 1: field 'answers 1' must be an object, not text",
        ),
        (
            read_ripple_edits,
            changed(made.RIPPLE, Forgetfulness=[{"test_condition": "XOR"}]),
            "Forgetfulness 1: field 'test_condition' must be OR or AND",
        ),
        (read_unke, changed(made.UNKE, sub_answer=["Cork"]), "1 sub_answer for 2 sub_question; give one for each"),
        (read_unke, changed(made.UNKE, answer=None), "(case_id 4): field 'answer' is missing"),
        (
            read_unke,
            changed(made.AKEW, requested_rewrite={"prompt_full": "x"}),
            "field 'requested_rewrite.fact_new_uns' is missing",
        ),
        (
            read_qaedit,
            changed(made.QAEDIT, subject="Sea"),
            "none of its 1 records is an edit: 1 whose prompt does not name the subject",
        ),
    ],
)
def test_refused(tmp_path: Path, reader: Callable[[Path], Any], rows: made.Rows, message: str) -> None:
    with pytest.raises(KeditError) as caught:
        reader(write(tmp_path, rows))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_refused_records_are_counted(tmp_path: Path) -> None:
    with pytest.raises(KeditError, match=r"record 1: field 'ans' is missing \(1 more records are refused\)"):
        read_wikibigedit(write(tmp_path, changed(made.WIKIBIGEDIT, ans=None) * 2))


@pytest.mark.parametrize(
    ("cls", "rows", "left"),
    [
        (KnowEdit, made.KNOWEDIT, {"no_subject": 1, "no_target": 1, "no_op": 1}),
        (WikiBigEdit, made.WIKIBIGEDIT, {}),
        (QAEdit, made.QAEDIT, {"no_subject": 1}),
        (RippleEdits, made.RIPPLE, {"no_subject": 1}),
        (UnKE, made.UNKE, {}),
    ],
)
def test_data_sets_count_what_is_left_out(tmp_path: Path, cls: Any, rows: made.Rows, left: dict[str, int]) -> None:
    path = str(write(tmp_path, rows))
    assert format_of(rows[0]) == cls.__name__
    data = cls(path)
    assert (data.in_file, len(data.records)) == (len(rows), len(rows) - sum(left.values()))
    assert data.describe()["left_out"] == left
    assert FORMATS[cls.__name__](path) == data.everything


@pytest.mark.parametrize(
    ("rows", "reader"), [(made.RIPPLE, read_ripple_edits), (made.UNKE, read_unke), (made.WIKIBIO, read_knowedit)]
)
def test_read_any(tmp_path: Path, rows: made.Rows, reader: Callable[[Path], list[EditRecord]]) -> None:
    path = write(tmp_path, rows)
    assert read_any(path, "model.demonstrations") == reader(path)


def test_groups_are_chosen_and_tests_are_kept_whole(tmp_path: Path) -> None:
    ada, _ = read_ripple_edits(write(tmp_path, made.RIPPLE))
    (one,) = with_chosen_probes([ada], None, 1)
    assert [probe.test for probe in one.probes if probe.group == "Logical_Generalization"] == ["any 1", "any 1"]
    (one,) = with_chosen_probes([ada], ["rewrite", "portability.compositionality_i"], None)
    assert [probe.group for probe in one.probes] == [None, "Compositionality_I"]
    (one,) = with_chosen_probes([ada], ["neighborhood"], None)
    assert len(one.probes) == 2


def test_fields_that_are_not_used_leave_fingerprints_as_they_were(tmp_path: Path) -> None:
    (record,) = read_wikibigedit(write(tmp_path, made.WIKIBIGEDIT_FLAT))
    assert fingerprint_of([record]) == "c2237063f9ab4131"  # as before there were groups
    grouped = replace(record, probes=(replace(record.probes[0], group="a"), *record.probes[1:]))
    assert fingerprint_of([grouped]) != fingerprint_of([record])


@pytest.mark.skipif(not (SHARED / "wikibigedit.json").exists(), reason="no ../shared/data")
def test_the_real_files() -> None:
    records = read_wikibigedit(SHARED / "wikibigedit.json")
    assert Counter(probe.kind for record in records for probe in record.probes) == {
        "rewrite": 2000,
        "paraphrase": 2000,
        "neighborhood": 2000,
    }
    records = read_qaedit(SHARED / "qaedit.json")
    assert Counter(probe.kind for record in records for probe in record.probes) == {
        "rewrite": 800,
        "paraphrase": 800,
        "neighborhood": 4000,
    }
