"""Figures of general ability: percent, changes with paired errors, means over models, and the file."""

from __future__ import annotations

import json
from io import StringIO
from statistics import mean, stdev

import pytest
from rich.console import Console

from kedit.ability.scores import Measured, Score, figures, figures_table, mean_score

BEFORE, AFTER = (1.0, 1.0, 0.0, 1.0), (1.0, 0.0, 0.0, 1.0)


def test_before_and_after_in_percent() -> None:
    measured = [
        Measured("before", "", (mean_score("own", "acc", BEFORE), Score("text", "word_perplexity", 20.0))),
        Measured("end", "4 edits", (mean_score("own", "acc", AFTER), Score("text", "word_perplexity", 25.5))),
    ]
    own, text = figures(measured)
    assert (own["task"], own["metric"], own["measured_at"], own["n"], own["unit"]) == (
        "own",
        "acc",
        "end",
        4,
        "percent",
    )
    assert (own["before"], own["after"], own["change"]) == (75.0, 50.0, -25.0)
    assert own["before_stderr"] == pytest.approx(100 * stdev(BEFORE) / 2, abs=1e-4)
    changes = [after - before for before, after in zip(BEFORE, AFTER, strict=True)]
    assert own["change_stderr"] == pytest.approx(100 * stdev(changes) / 2, abs=1e-4)
    assert own["change_stderr"] < own["before_stderr"] + own["after_stderr"]
    assert (text["before"], text["after"], text["change"], text["change_stderr"]) == (20.0, 25.5, 5.5, None)
    assert text["unit"] != "percent"


def test_a_mean_over_edited_models() -> None:
    measured = [Measured("before", "", (mean_score("own", "acc", BEFORE),))]
    measured += [
        Measured("edit", f"fact-{i}", (mean_score("own", "acc", items),)) for i, items in enumerate([BEFORE, AFTER])
    ]
    (line,) = figures(measured)
    assert (line["models"], line["after"], line["n"]) == (2, 62.5, 4)
    assert line["after_stderr"] == pytest.approx(50 * (stdev(BEFORE) + stdev(AFTER)) / 2, abs=1e-4)
    assert line["change_stderr"] == pytest.approx(100 * stdev([0.0, -0.5, 0.0, 0.0]) / 2, abs=1e-4)
    assert mean([0.0, -0.5, 0.0, 0.0]) * 100 == line["change"]


@pytest.mark.parametrize(
    ("metric", "rate"),
    [
        ("acc", True), ("acc_norm", True), ("exact_match,strict-match", True), ("prompt_level_strict_acc", True),
        ("f1", True), ("word_perplexity", False), ("bleu", False), ("bits_per_byte", False), ("rouge1_max", False),
    ],
)  # fmt: skip
def test_which_metrics_are_rates(metric: str, rate: bool) -> None:
    assert Score("task", metric, 0.5).is_rate == rate


def test_the_file_says_the_same() -> None:
    one = Measured("end", "3 edits", (mean_score("own", "acc", AFTER), Score("text", "bleu", 12.5, 0.5, 9)))
    assert Measured.of_json(json.loads(json.dumps(one.as_json()))) == one


def test_the_table_of_one_model_and_of_two() -> None:
    before = Measured("before", "", (mean_score("own", "acc", BEFORE),))
    after = Measured("end", "3 edits", (mean_score("own", "acc", AFTER),))
    texts = []
    for measured in ([before], [before, after]):
        console = Console(width=100, record=True, file=StringIO())
        console.print(figures_table(figures(measured)))
        texts.append(console.export_text())
    assert "75.0 +- 25.0" in texts[0]
    assert "after" not in texts[0]
    assert "-25.0 +- 25.0" in texts[1]
