"""`metrics.eval_at`: the run so far, measured at some numbers of edits in one sequential run."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

from kedit.callbacks import EditMetrics, EditProgress
from kedit.cli import main
from kedit.errors import KeditError
from kedit.results.curve import COLUMNS
from kedit.results.summary import summarise
from tests.support.small_runs import QUICK_MEMIT, city_facts, sequential_run

N = 12
AT = "[1,4,12]"
Rows = list[dict[str, Any]]


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    """A quick sequential run."""
    data = city_facts(tmp_path / "facts.jsonl", N)
    return sequential_run(tiny_folder, data, QUICK_MEMIT | {"run.root": tmp_path / "runs"})


def of(rows: Rows, measured_at: str) -> Rows:
    """Rows of one moment."""
    return [row for row in rows if row["measured_at"] == measured_at]


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def test_the_run_so_far_is_measured_and_not_disturbed(
    words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*words, "--run.name", "plain"])
    assert "after so many edits" not in capsys.readouterr().out
    main([*words, "--run.name", "curve", "--metrics.eval_at", AT])
    plain, curve = tmp_path / "runs" / "plain", tmp_path / "runs" / "curve"
    rows = rows_of(curve)
    assert [row for row in rows if not row["measured_at"].startswith("at_")] == rows_of(plain)
    one, other = (load_file(folder / "delta" / "delta.safetensors") for folder in (plain, curve))
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    moments = list(dict.fromkeys(row["measured_at"] for row in rows))
    assert moments == ["edit", "at_1", "at_4", "at_12", "end"]
    for n in (1, 4, 12):
        own = of(rows, f"at_{n}")
        assert [row["case_id"] for row in own] == [f"fact-{i}" for i in range(n)]
        assert [row["batch"] for row in own] == list(range(n))
        assert {row["edits"] for row in own} == {n}
        assert {row["protocol"]["measured"] for row in own} == {f"after {n} edit{'s' if n > 1 else ''}"}
        newest = zip(own[-1]["probes"], of(rows, "edit")[n - 1]["probes"], strict=True)
        for mine, after_edit in newest:  # on the same model, in larger batches
            assert mine["after"]["nll_answer"] == pytest.approx(after_edit["after"]["nll_answer"], abs=1e-4)
    assert [row["probes"] for row in of(rows, "at_12")] == [row["probes"] for row in of(rows, "end")]
    assert of(rows, "at_4")[0]["probes"] != of(rows, "at_12")[0]["probes"]

    both = [summary_of(folder) for folder in (plain, curve)]
    assert both[0]["results"] == both[1]["results"]
    assert "curve" not in both[0]
    assert [(point["edits"], point["measured_at"]) for point in both[1]["curve"]] == [
        (1, "at_1"),
        (4, "at_4"),
        (12, "at_12"),
    ]
    for point in both[1]["curve"]:
        assert point["results"] == summarise(rows, point["measured_at"], resamples=50)
        assert {"rewrite", "paraphrase", "neighborhood", "score"} <= point["results"].keys()
        assert point["results"]["rewrite"]["success"]["n_records"] == point["edits"]
    card = json.loads((curve / "delta" / "card.json").read_text())
    assert {row["measured_at"] for row in card["requests"]} == {"edit", "end"}


def test_the_curve_is_shown_and_written(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*words, "--run.name", "one", "--metrics.eval_at", "[2,12]", "--metrics.measure", "edit"])
    folder, shown = tmp_path / "runs" / "one", capsys.readouterr().out
    assert shown.count("after so many edits") == 1
    assert "at_2" not in shown
    lines = list(csv.DictReader((folder / "curve.csv").open()))
    assert tuple(lines[0]) == COLUMNS
    cells = {point["edits"]: point["results"] for point in summary_of(folder)["curve"]}
    assert set(cells) == {2, 12}
    assert len(lines) == sum(len(metrics) for kinds in cells.values() for metrics in kinds.values())
    for line in lines:
        cell = cells[int(line["edits"])][line["kind"]][line["metric"]]
        assert line["after"] == ("" if cell["after"] is None else str(cell["after"]))
        assert [line["ci_low"], line["ci_high"]] == ([str(end) for end in cell["ci"]] if cell["ci"] else ["", ""])
    for edits in (2, 12):
        block = next(line for line in shown.splitlines() if line.startswith(f"│ {edits} "))
        assert f"{cells[edits]['rewrite']['success']['after']:.1f}" in block
    image = imread(folder / "curve.png")
    assert image.shape[0] > 300
    assert image.shape[1] > 900
    assert len({tuple(pixel) for pixel in image.reshape(-1, image.shape[2])[::7].tolist()}) > 20


def test_a_resumed_run_has_the_same_curve(
    words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped right before a checkpoint that would vouch for `at_4`, and right after that of batch 6."""
    words += ["--metrics.eval_at", AT, "--checkpoint.every", "3"]
    main([*words, "--run.name", "whole"])
    run, resume = tmp_path / "runs" / "broken", [*words, "--run.name", "broken", "--run.resume", "true"]
    count = EditProgress.on_edit_end
    for stop in (4, 7):

        def breaks(self: EditProgress, trainer: Any, module: Any, batch: Any, stop: int = stop) -> None:
            count(self, trainer, module, batch)
            if batch.index == stop:
                raise ZeroDivisionError

        monkeypatch.setattr(EditProgress, "on_edit_end", breaks)
        with pytest.raises(ZeroDivisionError):
            main(resume)
        assert len(of(rows_of(run), "at_4")) == 4
    monkeypatch.setattr(EditProgress, "on_edit_end", count)
    main(resume)
    assert rows_of(run) == rows_of(tmp_path / "runs" / "whole")
    assert summary_of(run)["curve"] == summary_of(tmp_path / "runs" / "whole")["curve"]
    assert (run / "curve.csv").read_bytes() == (tmp_path / "runs" / "whole" / "curve.csv").read_bytes()


def test_batches_of_several_records(
    words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows], capsys: pytest.CaptureFixture[str]
) -> None:
    words += ["--data.batch_size", "5"]
    for eval_at, message in (("[5,7]", "7 edits are not at the end of an edit batch; the nearest are 5 and 10"),
                             ("[1,10]", "1 edits are not at the end of an edit batch; the first is 5")):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main([*words, "--run.name", "refused", "--metrics.eval_at", eval_at])
        assert stop.value.code == 2
        assert f"kedit: error: metrics.eval_at: {message}\n" in capsys.readouterr().err
    main([*words, "--run.name", "one", "--metrics.eval_at", "[5,12]"])
    rows = rows_of(tmp_path / "runs" / "one")
    assert [row["batch"] for row in of(rows, "at_5")] == [0] * 5
    assert [row["batch"] for row in of(rows, "at_12")] == [0] * 5 + [1] * 5 + [2] * 2


def test_more_than_there_are_is_told(
    words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        main([*words, "--run.name", "one", "--metrics.eval_at", "[2,100,1000]", "--data.limit", "3"])
    assert "metrics.eval_at: left out, this run has 3 edits: 100, 1000" in caplog.text
    assert {row["measured_at"] for row in rows_of(tmp_path / "runs" / "one")} == {"edit", "at_2", "end"}


@pytest.mark.parametrize("counts", [[0, 1], [-3], [10, 1], [5, 5]])
def test_counts_are_ascending_and_positive(counts: list[int]) -> None:
    with pytest.raises(KeditError, match=r"^metrics.eval_at: .*ascending"):
        EditMetrics(eval_at=counts)


@pytest.mark.parametrize("regime", ["single", "batch"])
def test_only_edits_that_accumulate(regime: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--edit.regime", regime, "--metrics.eval_at", "[1,4]"])
    assert stop.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    want = f"metrics.eval_at: in the {regime} regime edits do not accumulate; use edit.regime: sequential"
    assert error == [f"kedit: error: {want}"]
