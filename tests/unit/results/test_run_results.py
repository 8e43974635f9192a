"""The numbers of a run: its moments apart, its curve, the edits that failed."""

from __future__ import annotations

from typing import Any

import pytest

from kedit.errors import KeditError
from kedit.request import EditRecord, EditRequest, Probe
from kedit.results.curve import check_counts
from kedit.results.rows import ProbeScore, edit_row
from kedit.results.run_results import RunResults
from kedit.results.summary import summarise


def row(case: str, measured_at: str, right: bool, error: str | None = None) -> dict[str, Any]:
    record = EditRecord(EditRequest(case, "{} is in", "X", "Rome", "Paris"), (Probe("rewrite", "X is in", "Rome"),))
    score = ProbeScore(0.5, None, right, float(right), (1,))
    info = {"loss": 0.25, "pathway": {"0": 1}}
    return edit_row(record, info, error, 0, "sequential", measured_at, [score], [score])


ROWS = [
    row("a", "edit", True),
    row("b", "edit", False, "it diverged"),
    row("a", "at_2", True),
    row("b", "at_2", True),
    row("a", "editor", True),
    row("a", "end", True),
]


def test_moments_curve_and_failures() -> None:
    results = RunResults.of(ROWS, 50)
    assert list(results.moments) == ["edit", "editor", "end"]
    assert all(results.moments[moment] == summarise(ROWS, moment, 50) for moment in results.moments)
    assert results.curve == [{"edits": 2, "measured_at": "at_2", "results": summarise(ROWS, "at_2", 50)}]
    assert results.failed == {"b": "it diverged"}
    assert [(edit["case_id"], edit["measured_at"], edit["status"]) for edit in results.edits] == [
        ("a", "edit", "edited"), ("b", "edit", "failed"), ("a", "editor", "edited"), ("a", "end", "edited"),
    ]  # fmt: skip
    assert set(results.edits[0]) == {"case_id", "measured_at", "status", "request", "edit"}
    assert RunResults.of([], 50) == RunResults({}, [], {}, [])


def test_what_a_row_says_of_its_edit() -> None:
    edit, late, editor = ROWS[0], ROWS[2], ROWS[4]
    assert edit["protocol"] == {"regime": "sequential", "measured": "after its own edit"}
    assert late["protocol"]["measured"] == "after 2 edits"
    assert edit["edit"] == {"loss": 0.25, "pathway": {"0": 1}}
    assert editor["edit"] == {"loss": 0.25}  # the pathway is what the method adds
    assert edit["request"]["joiner"] == "space"
    assert "case_id" not in edit["request"]
    record = EditRecord(EditRequest("c", "{} is in", "X", "Rome", "Paris"), (Probe("rewrite", "X is in", "Rome"),))
    unfit = edit_row(record, {}, "too long", 3, "single", "edit")
    assert (unfit["status"], unfit["error"], unfit["batch"]) == ("failed", "too long", 3)
    assert [(probe["before"], probe["after"]) for probe in unfit["probes"]] == [(None, None)]


def test_counts_are_at_the_ends_of_batches(caplog: pytest.LogCaptureFixture) -> None:
    check_counts([5, 10, 12], [0, 5, 10, 12])
    check_counts([20, 30], [0, 5])
    assert "left out, this run has 5 edits: 20, 30" in caplog.text
    with pytest.raises(KeditError, match="7 edits are not at the end of an edit batch; the nearest are 5 and 10"):
        check_counts([7], [0, 5, 10])
    with pytest.raises(KeditError, match="1 edits are not at the end of an edit batch; the first is 5"):
        check_counts([1], [0, 5, 10])
