"""Summaries and intervals against numbers worked out by hand."""

from __future__ import annotations

import json
from math import exp, log
from typing import Any

import numpy as np
import pytest

from kedit.errors import KeditError
from kedit.request import EditRecord, EditRequest, Probe
from kedit.results.intervals import bootstrap, harmonic_interval, harmonic_mean, paired, resampled_means, wilson
from kedit.results.rows import METRICS, RATES, ProbeScore, result_row, unchanged
from kedit.results.summary import SummaryAccumulator, flat, summarise


def said(answer: float, rival: float | None, top1: tuple[int, ...] = (1,), hits: int = 0, **more: Any) -> ProbeScore:
    """A score with the given probabilities, of which the first `hits` answer tokens are the argmax."""
    n = len(top1)
    nll_rival = None if rival is None else -log(rival)
    return ProbeScore(-log(answer), nll_rival, hits == n, hits / n, top1, **more)


def record(case_id: str, *kinds: str) -> EditRecord:
    probes = tuple(Probe(kind, f"text {i}", "Rome", "Paris") for i, kind in enumerate(kinds))
    return EditRecord(EditRequest(case_id, "{} is in", "X", "Rome", "Paris"), probes)


# record 1: one rewrite, two neighbours; record 2: one rewrite, one neighbour; record 3: rewrite alone
ROWS = [
    result_row(
        record("1", "rewrite", "neighborhood", "neighborhood"),
        [said(0.1, 0.5), said(0.5, 0.1, (7, 8), 2), said(0.5, 0.1, (7, 9), 1)],
        [
            said(0.9, 0.1, (5,), 1, generated=" Rome", generated_match=True),
            said(0.5, 0.1, (7, 8), 2),
            said(0.1, 0.5, (7, 3), 1),
        ],
        batch=0,
        measured_at="edit",
    ),
    result_row(
        record("2", "rewrite", "neighborhood"),
        [said(0.1, 0.5), said(0.5, 0.1, (4,), 1)],
        [said(0.2, 0.4, generated=" Oslo", generated_match=False), said(0.4, 0.2, (4,), 1)],
        batch=1,
        measured_at="edit",
    ),
    result_row(record("3", "rewrite"), [said(0.5, 0.1)], [said(0.8, 0.1, (5,), 1)], batch=2, measured_at="edit"),
]


def test_summary_by_hand() -> None:
    summary = summarise(json.loads(json.dumps(row)) for row in ROWS)
    rewrite, near = summary["rewrite"], summary["neighborhood"]
    assert (rewrite["success"]["before"], rewrite["success"]["after"]) == (33.3333, 66.6667)
    assert rewrite["success"]["change"] == 33.3333
    assert rewrite["exact"]["after"] == 66.6667
    assert rewrite["generated"] | {"ci": None} == {
        "before": None, "after": 50.0, "change": None, "ci": None, "change_ci": None,
        "micro": {"before": None, "after": 50.0}, "n_records": 2, "n_probes": 2,
    }  # fmt: skip
    assert rewrite["magnitude"]["after"] == pytest.approx(100 * (0.8 - 0.2 + 0.7) / 3, abs=1e-3)
    assert rewrite["p_answer"]["before"] == pytest.approx(100 * 0.7 / 3, abs=1e-3)
    # over records: (1/2 + 1) / 2; over probes: 2 of 3
    assert (near["success"]["after"], near["success"]["micro"]["after"]) == (75.0, 66.6667)
    assert (near["success"]["n_records"], near["success"]["n_probes"]) == (2, 3)
    assert (near["token_accuracy"]["before"], near["exact"]["before"]) == (87.5, 75.0)
    assert (near["unchanged"]["before"], near["unchanged"]["after"]) == (None, 75.0)
    assert near["unchanged_tokens"]["after"] == 87.5
    assert "unchanged" not in rewrite
    assert "score" not in summary  # no paraphrases
    low, high = near["success"]["ci"]
    assert 50 <= low <= 75 <= high <= 100
    assert flat(summary)["locality/unchanged"] == 75.0
    assert flat(summary)["efficacy/success"] == 66.6667


def scored_rows(n: int, success: float) -> list[dict[str, Any]]:
    """`n` records with one probe of each scored kind; `success` of the paraphrases succeed, all others do."""
    good, bad = said(0.9, 0.1, (5,), 1), said(0.1, 0.9, (5,), 0)
    rows = []
    for i in range(n):
        after = [good, good if i < success * n else bad, good]
        rows.append(
            result_row(record(str(i), "rewrite", "paraphrase", "neighborhood"), [bad, bad, good], after, i, "edit")
        )
    return rows


def test_score_is_the_harmonic_mean() -> None:
    summary = summarise(scored_rows(10, 0.5))
    score = summary["score"]["success"]
    assert score["before"] == 0.0
    assert score["after"] == pytest.approx(100 * 3 / (1 + 2 + 1), abs=1e-3)
    assert score["ci"][0] < score["after"] < score["ci"][1]
    assert score["change"] == score["after"]
    perfect = summarise(scored_rows(10, 1.0))["score"]["success"]
    low, high = wilson(10, 10)
    assert perfect["after"] == 100.0
    assert perfect["ci"] == [pytest.approx(100 * low, abs=1e-3), 100 * high]


def test_scoreboard_equals_the_file_in_any_order_and_counts_a_record_once() -> None:
    whole = summarise(ROWS)
    board, other = SummaryAccumulator(), SummaryAccumulator()
    stale = result_row(record("1", "rewrite"), None, [said(0.1, 0.9)], 0, "edit")
    for row in (stale, ROWS[0]):
        board.add(row)
    for row in ROWS[1:]:
        other.add(row)
    board.merge(other)
    assert len(board) == 3
    assert board.summary() == whole
    assert summarise([]) == {}


def test_moments_and_protocols_are_not_mixed() -> None:
    late = [row | {"measured_at": "end"} for row in ROWS]
    with pytest.raises(KeditError, match="mix the moments edit, end"):
        summarise(ROWS + late)
    assert summarise(ROWS + late, measured_at="end") == summarise(ROWS)
    with pytest.raises(KeditError, match="mix 2 protocols"):
        summarise([ROWS[0] | {"protocol": {"regime": "single"}}, ROWS[1]])


def test_rows_without_before_or_after() -> None:
    rows = [row | {"probes": [probe | {"before": None} for probe in row["probes"]]} for row in ROWS]
    cell = summarise(rows)["rewrite"]["success"]
    assert (cell["before"], cell["after"], cell["change"]) == (None, 66.6667, None)
    rows = [row | {"probes": [probe | {"after": None} for probe in row["probes"]]} for row in ROWS]
    cell = summarise(rows)["rewrite"]["success"]
    assert (cell["before"], cell["after"], cell["ci"], cell["n_records"]) == (33.3333, None, None, 3)


def test_every_quantity_is_the_mean_over_records_and_over_probes() -> None:
    pairs = [
        (
            [said(0.5, 0.1, (7, 8), 2), said(0.5, 0.1, (7, 9), 1)],
            [said(0.5, 0.1, (7, 8), 2), said(0.1, 0.5, (7, 3), 1)],
        ),
        ([said(0.5, 0.1, (4,), 1)], [said(0.4, 0.2, (4,), 1)]),
    ]
    near = summarise(ROWS)["neighborhood"]
    assert "generated" not in near
    for name, cell in near.items():
        if name in METRICS:
            values = [[METRICS[name](score.as_row(17)) for score in after] for _, after in pairs]
        else:
            values = [
                [unchanged(b.as_row(), a.as_row())[name] for b, a in zip(before, after, strict=True)]
                for before, after in pairs
            ]
        known = [[float(value) for value in of_record if value is not None] for of_record in values]
        mean = np.mean([np.mean(of_record) for of_record in known])
        assert cell["after"] == pytest.approx(100 * mean, abs=1e-3)
        assert cell["micro"]["after"] == pytest.approx(100 * np.mean(np.concatenate(known)), abs=1e-3)


def test_score_of_records_that_lack_a_kind() -> None:
    good, bad = said(0.9, 0.1), said(0.1, 0.9)
    accumulator = SummaryAccumulator()
    accumulator.add(result_row(record("1", "rewrite", "paraphrase", "paraphrase"), None, [good, good, bad], 0, "edit"))
    assert "score" not in accumulator.summary()
    accumulator.add(result_row(record("2", "neighborhood", "neighborhood"), None, [good, good], 1, "edit"))
    scores = accumulator.summary()["score"]
    assert scores["success"]["after"] == pytest.approx(75.0)
    assert set(scores) <= {*RATES, "tokens_arithmetic"}  # of magnitudes there is none


def test_accumulators_add_up_over_processes() -> None:
    first, second, both = SummaryAccumulator(), SummaryAccumulator(), SummaryAccumulator()
    for accumulator, case, scores in (
        (first, "1", [said(0.9, 0.1)]),
        (second, "2", [said(0.1, 0.9), said(0.9, 0.1)]),
    ):
        row = result_row(record(case, *["rewrite"] * len(scores)), None, scores, 0, "edit")
        accumulator.add(row)
        both.add(row)
    first.merge(second)
    assert first.summary() == both.summary()
    assert first.summary()["rewrite"]["success"]["after"] == 75.0


def test_harmonic_mean() -> None:
    assert harmonic_mean([0.5, 1.0, 1.0]) == pytest.approx(0.75)
    assert harmonic_mean([0.0, 1.0]) == 0.0
    assert np.isnan(harmonic_mean([np.nan, 1.0]))
    assert harmonic_mean([[0.2, 0.2], [1.0, 1 / 3]]) == pytest.approx([0.2, 0.5])


def test_bootstrap_is_deterministic_and_contains_the_mean() -> None:
    values = np.random.default_rng(3).random(50).tolist()
    low, high = bootstrap(values, seed=1)
    assert (low, high) == bootstrap(values, seed=1)
    assert (low, high) != bootstrap(values, seed=2)
    mean = float(np.mean(values))
    assert low < mean < high
    # the normal approximation is good at n = 50
    error = 1.96 * float(np.std(values)) / 50**0.5
    assert (low, high) == (pytest.approx(mean - error, abs=0.02), pytest.approx(mean + error, abs=0.02))


def test_resampling_ignores_what_is_missing_and_keeps_records_together() -> None:
    values = np.array([[0.0, 1.0, np.nan], [1.0, 2.0, 0.5], [3.0, 4.0, np.nan]])
    means = resampled_means(values, resamples=500, seed=0)
    assert np.allclose(means[:, 1] - means[:, 0], 1.0)
    drawn = ~np.isnan(means[:, 2])
    assert np.allclose(means[drawn, 2], 0.5)
    assert 0.6 < drawn.mean() < 0.8  # record 2 is drawn with probability 1 - (2/3)^3 = 0.70
    many = resampled_means(np.ones((3000, 1)), resamples=3000)  # several chunks
    assert many.shape == (3000, 1)
    assert (many == 1).all()


def test_degenerate_intervals() -> None:
    # Wilson at p = 0: [0, z^2 / (n + z^2)]
    room = 1.959964**2 / (20 + 1.959964**2)
    assert bootstrap([0.0] * 20) == (0.0, pytest.approx(room, abs=1e-6))
    assert bootstrap([1.0] * 20) == (pytest.approx(1 - room, abs=1e-6), 1.0)
    assert bootstrap([0.3] * 20) == (0.3, 0.3)
    assert bootstrap([0.0] * 20, scale="other") == (0.0, 0.0)
    assert paired([0.5] * 20, [0.5] * 20) == (pytest.approx(-room, abs=1e-6), pytest.approx(room, abs=1e-6))
    assert paired([0.0] * 20, [1.0] * 20) == (pytest.approx(1 - room, abs=1e-6), 1.0)
    assert paired([1.0] * 20, [0.0] * 20) == (-1.0, pytest.approx(room - 1, abs=1e-6))
    assert harmonic_interval(np.zeros((20, 2))) == (0.0, pytest.approx(room, abs=1e-6))


def test_pairing_narrows_the_interval_of_a_change() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(100)
    after = before + 0.1 + 0.01 * rng.random(100)
    low, high = paired(before.tolist(), after.tolist(), scale="other")
    assert 0.1 < low < high < 0.11


def test_wilson_reference_values() -> None:
    assert wilson(50, 100) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))
    assert wilson(0, 10) == (0.0, pytest.approx(0.27753, abs=1e-5))


def test_probabilities_of_a_score() -> None:
    score = said(0.25, 0.5)
    assert (score.p_answer, score.p_rival) == (pytest.approx(0.25), pytest.approx(0.5))
    assert score.success is False
    assert said(0.25, None).success is None
    assert exp(-score.nll_answer) == score.p_answer
