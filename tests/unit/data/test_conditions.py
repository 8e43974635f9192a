"""Probes with conditions: asked where the unedited model meets them, and counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kedit.data import RippleEdits
from kedit.data.conditions import Conditions, with_met_conditions
from kedit.forward.greedy import greedy
from kedit.request import Condition, EditRecord, EditRequest, Probe
from tests.support.benchmark_records import RIPPLE
from tests.support.tiny_models import tiny_lm

REQUEST = EditRequest("1", "{} is in", "Ulm", "Rome", "Paris")


def record(*conditions: tuple[Condition, ...]) -> EditRecord:
    probes = [Probe("portability", f"text {i}", "x", conditions=found) for i, found in enumerate(conditions)]
    return EditRecord(REQUEST, (Probe("rewrite", REQUEST.text, "Rome"), *probes))


def test_all_conditions_and_all_answers_must_be_met() -> None:
    lm = tiny_lm()
    prompt = "The mother of Ada is"
    (said,) = greedy(lm, [prompt], 30)
    words = said.split()
    first, other = Condition(prompt, ((words[0],),)), Condition(prompt, (("no such word",),))
    both = Condition(prompt, ((words[0],), ("no such word", words[-1])))  # of an answer any spelling
    lacks = Condition(prompt, ((words[0],), ("no such word",)))
    long = Condition("word " * 2000, (("word",),))
    given = record((first,), (other,), (first, both), (first, other), (lacks,), (), (long,))
    (kept,), counts = with_met_conditions(lm, [given])
    assert [probe.text for probe in kept.probes] == [REQUEST.text, "text 0", "text 2", "text 5"]
    assert counts == Conditions(probes=6, asked=2)
    assert with_met_conditions(lm, [record((long,))])[1] == Conditions(probes=1, asked=0)
    assert counts.notice() == "2 of 6 probes with conditions are asked: the unedited model meets those"


def test_a_data_set_asks_the_model(tmp_path: Path) -> None:
    path = tmp_path / "popular.json"
    path.write_text(json.dumps(RIPPLE))
    data = RippleEdits(str(path))
    with pytest.raises(ValueError, match="give prepare"):
        data.prepare(list)
    data.prepare(list, tiny_lm)
    assert data.conditions == Conditions(probes=2, asked=0)
    assert data.describe()["conditions"] == {"probes": 2, "asked": 0}
    assert data.describe()["probes"]["portability.subject_aliasing"] == 1
    assert {probe.group for probe in data.records[0].probes} == {
        *(None, "Logical_Generalization", "Subject_Aliasing", "Forgetfulness")
    }


def test_data_without_conditions_asks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "popular.json"
    rows = [{**row, "Relation_Specifity": [], "Compositionality_I": []} for row in RIPPLE]
    path.write_text(json.dumps(rows))
    data = RippleEdits(str(path))
    data.prepare(list)
    assert data.conditions is None
    assert "conditions" not in data.describe()
    assert not any(replace(probe).conditions for record in data.records for probe in record.probes)
