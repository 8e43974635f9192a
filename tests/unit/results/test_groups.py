"""Groups of a kind of probe, and tests of several probes, in summaries."""

from __future__ import annotations

import json

import pytest

from kedit.request import EditRecord, EditRequest, Probe
from kedit.results.groups import Values
from kedit.results.rows import ProbeScore, result_row
from kedit.results.summary import summarise


def row(*probes: tuple[str, str | None, str | None, bool]) -> dict:
    """A result row of probes given by kind, group, test, and whether they come out exactly after the edit."""
    made = tuple(Probe(kind, "x", "Rome", None, group=group, test=test) for kind, group, test, _ in probes)
    before = [ProbeScore(1.0, None, False, 0.0, (3, 4)) for _ in probes]
    after = [ProbeScore(1.0, None, hit, float(hit), (3, 4) if hit else (3, 5)) for *_, hit in probes]
    record = EditRecord(EditRequest("1", "{} is in", "X", "Rome", "Paris"), made)
    return json.loads(json.dumps(result_row(record, before, after, 0, "edit")))


def test_groups_are_reported_together_and_each_by_itself() -> None:
    summary = summarise(
        [
            row(
                ("rewrite", None, None, True),
                ("portability", "Reasoning", None, True),
                ("portability", "Reasoning", None, False),
                ("portability", "Subject_Aliasing", None, True),
                ("neighborhood", "Forgetfulness", None, True),
                ("neighborhood", "Relation_Specificity", None, False),
            )
        ]
    )
    assert summary["portability"]["exact"]["after"] == pytest.approx(66.6667)
    assert summary["portability.reasoning"]["exact"]["after"] == 50.0
    assert summary["portability.subject_aliasing"]["port_acc"]["after"] == 100.0
    assert summary["neighborhood"]["unchanged"]["after"] == 50.0
    assert summary["neighborhood.forgetfulness"]["unchanged"]["after"] == 100.0
    assert summary["neighborhood.relation_specificity"]["unchanged_tokens"]["after"] == 50.0


def test_a_test_counts_as_one_probe() -> None:
    summary = summarise(
        [
            row(
                ("portability", "A", "any 1", False),
                ("portability", "A", "any 1", True),
                ("portability", "A", "all 2", False),
                ("portability", "A", "all 2", True),
                ("portability", "A", None, True),
            )
        ]
    )
    cell = summary["portability"]["exact"]
    assert (cell["after"], cell["n_probes"]) == (pytest.approx(66.6667), 3)


def test_rows_without_groups_are_as_they_were() -> None:
    (probe,) = row(("rewrite", None, None, True))["probes"]
    assert list(probe) == ["kind", "text", "answer", "rival", "before", "after"]


def test_values() -> None:
    values = Values()
    for value, test in ((0.2, "any 1"), (0.7, "any 1"), (0.4, "any 1"), (0.2, "all 2"), (0.1, "all 2"), (1.0, None)):
        values.add(value, test)
    total, count = values.sum_and_count()
    assert (total, count) == (pytest.approx(0.7 + 0.1 + 1.0), 3)
