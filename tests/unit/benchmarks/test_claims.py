"""`benchmarks/claims.py`: verdicts are of the committed figures, and the page is what it would write now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import HELD, NOT_HELD, OPEN, PAGE, YET, figure, judged, page

NUMBER = {"file": "a.json", "at": ["figures", {"when": "now", "kind": "rewrite"}]}
HEADER = "data,regime,arm,measure,records,mean,ci_low,ci_high,difference,difference_ci_low,difference_ci_high\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    items = [
        {"when": "now", "kind": "rewrite", "after": 40.0, "ci": [30.0, 50.0]},
        {"when": "now", "kind": "paraphrase", "change": -2.0, "ci_low": -3.0, "ci_high": -1.0},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"protocol": "single", "data": "x", "figures": items, "rate": 3}))
    lines = ["robust/counterfact,single,rome_smollm2 plain,score/success,9,80,75,85,,,"]
    lines += ["robust/counterfact,single,rect_rome_smollm2,score/success,9,70,60,79,-10,-15,-5"]
    (tmp_path / "t.csv").write_text(HEADER + "\n".join(lines) + "\n")
    return tmp_path


def arm(name: str) -> dict[str, Any]:
    return {"file": "t.csv", "data": "counterfact", "regime": "single", "arm": name, "measure": "score/success"}


def verdict(results: Path, *tests: dict[str, Any]) -> str:
    claims = [{"label": "x", "of": NUMBER} | test for test in tests]
    return judged({"says": "something", "tests": claims}, results).verdict


def test_the_page_is_not_stale() -> None:
    """Else: python benchmarks/claims.py"""
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(
    ("test", "wanted"),
    [
        ({"above": 29}, True),
        ({"above": 30}, False),
        ({"below": 51}, True),
        ({"below": 50}, False),
        ({"at_least": 40}, True),
        ({"at_least": 41}, False),
        ({"at_most": 39}, False),
        ({"near": 40}, True),
        ({"near": 39}, False),
        ({"below": arm("rome_smollm2")}, True),
        ({"above": arm("rome_smollm2")}, False),
        ({"at_least": arm("rome_smollm2"), "margin": 40}, True),
        ({"at_least": arm("rome_smollm2"), "margin": 39}, False),
        ({"of": arm("rome_smollm2"), "above": arm("rect_rome_smollm2")}, False),  # 75 is not above 79
        ({"of": {"file": "a.json", "at": ["figures", {"kind": "paraphrase"}]}, "below": 0}, True),
        ({"of": {"file": "a.json", "at": ["rate"]}, "at_least": 3}, True),
        ({"of": arm("rect_rome_smollm2") | {"column": "difference"}, "below": -4}, True),
        ({"of": arm("rect_rome_smollm2") | {"column": "difference"}, "below": -5}, False),
    ],
)
def test_a_verdict_is_that_of_its_figures(results: Path, test: dict[str, Any], wanted: bool) -> None:
    assert verdict(results, test) == (HELD if wanted else NOT_HELD)


def test_all_tests_must_pass_and_none_may_be_missing(results: Path) -> None:
    assert verdict(results, {"above": 0}, {"above": 60}) == NOT_HELD
    assert verdict(results, {"above": 0}, {"of": NUMBER | {"file": "later.csv"}, "above": 60}) == YET
    assert verdict(results, {"above": 100}, {"of": NUMBER | {"file": "later.csv"}, "above": 60}) == NOT_HELD
    assert verdict(results, {"above": arm("memit_smollm2")}) == YET
    assert judged({"says": "something", "why": "no run"}, results).verdict == OPEN


def test_where_a_figure_is_from(results: Path) -> None:
    found = figure(NUMBER, results)
    assert (str(found), found and found.on) == ("40.0 [30.0, 50.0]", "single; x")
    found = figure(arm("rome_smollm2 plain"), results)
    assert (str(found), found and found.on) == ("80.0 [75.0, 85.0]", "regime single; robust/counterfact, 9 records")


def test_a_slip_in_a_claim_is_named(results: Path) -> None:
    with pytest.raises(KeyError, match=r"a\.json: there is no 'rates'"):
        figure({"file": "a.json", "at": ["rates"]}, results)
    with pytest.raises(KeyError, match=r"a\.json: 2 items have"):
        figure({"file": "a.json", "at": ["figures", {"when": "now"}]}, results)
    (results / "t.csv").write_text((results / "t.csv").read_text().replace("rect_rome_smollm2", "rome_smollm2 other"))
    with pytest.raises(KeyError, match=r"t\.csv: 2 lines are of"):
        figure(arm("rome_smollm2"), results)
