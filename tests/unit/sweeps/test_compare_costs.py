"""`kedit compare`: what edits cost, the perplexity, the first records of a run over its edits, and their figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from kedit.cli import main
from kedit.results.costs import cost_lines
from kedit.sweeps.arms import of_folders
from kedit.sweeps.compare import Comparison, compare, short_names
from kedit.sweeps.compare_tables import as_markdown, legend
from kedit.sweeps.curve_figure import curve_figures
from kedit.sweeps.measures import SETS, measures_of
from tests.support.comparison_cases import random_row, refused, write_run

N, POINTS = 8, (2, 5, 8)
Rows = list[dict[str, Any]]


def rows_of_a_curve(random: np.random.Generator) -> Rows:
    """A sequential run of `N` records, measured after some numbers of edits and at its end."""
    rows = []
    for at, n in [*((f"at_{n}", n) for n in POINTS), ("end", N)]:
        perplexity = {"before": 10.0, "after": 10.0 + n}
        rows += [random_row(case, random, at) | {"perplexity": perplexity} for case in range(n)]
    return rows


def with_costs(folder: Path, scale: float) -> str:
    """Gives a run its costs: the time of an edit grows with its number."""
    lines = [cost_lines([str(i)], i, 2 * scale * (i + 1), scale * (i + 1), [1000 * (i + 1)])[0] for i in range(N)]
    (folder / "costs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"delta_bytes": 36_000 * scale, "timing": {"peak_memory": 2_000_000_000}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two runs with costs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    random = np.random.default_rng(0)
    made = [write_run(Path(f"runs/{name}"), rows_of_a_curve(random), regime="sequential") for name in "ab"]
    return [with_costs(folder, scale) for folder, scale in zip(made, (1.0, 3.0), strict=True)]


def comparison(folders: list[str], metrics: str, first: int | None = None) -> Comparison:
    return compare(of_folders(list(map(Path, folders)), seeds=False), measures_of(metrics), first=first)


def test_what_edits_cost(folders: list[str]) -> None:
    result = comparison(folders, "methods,bytes_per_edit")
    tables = {table.alike.measured_at: table for table in result.tables}
    end = tables["end"].arms[1].cells
    assert end["cpu_seconds"].mean == pytest.approx(3 * np.mean(range(1, N + 1)))
    assert end["cpu_seconds"].ci[0] < end["cpu_seconds"].mean < end["cpu_seconds"].ci[1]
    assert end["delta_bytes"].mean == pytest.approx(108)  # kB
    assert end["peak_memory"].mean == pytest.approx(2000)  # MB
    assert end["perplexity"].mean == 18
    assert end["perplexity"].ci == (18, 18)
    assert tables["end"].unedited["perplexity"] == 10
    at = tables["at_5"].arms[0].cells  # of the third to the fifth edit alone
    assert at["cpu_seconds"].mean == pytest.approx(4)
    assert at["cpu_seconds"].n == 3
    assert at["bytes_per_edit"].mean == pytest.approx(4)
    assert not {"delta_bytes", "peak_memory"} & at.keys()
    assert at["perplexity"].mean == 15


def test_how_costs_are_written(folders: list[str]) -> None:
    result = comparison(folders, "methods")
    text = as_markdown(result)
    end = next(part for part in text.split("## ") if "after the last edit" in part)
    assert "cpu seconds (s) | peak memory (MB) | delta bytes (kB) | perplexity |" in end.replace("\n", " ")
    assert "| 2000 | 36.0 | 18.00 |" in end
    assert "| (unedited) |" in end
    assert "delta_bytes: of the delta of an edit (single)" in text
    assert not any(line.startswith("cpu_seconds") for line in legend(comparison(folders, "main")))


def test_an_enormous_perplexity_is_short(folders: list[str]) -> None:
    path = Path(folders[0]) / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["perplexity"]["after"] = 2.6881e43
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "| 2.69e+43 |" in as_markdown(comparison(folders, "perplexity"))


def test_the_first_records(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Only the rows of the first three records that were edited, at every measuring point."""
    result = comparison(folders, "efficacy/exact,generality/token_accuracy", first=3)
    rows = [json.loads(line) for line in (Path(folders[0]) / "results.jsonl").read_text().splitlines()]
    for table in result.tables:
        own = [row for row in rows if row["measured_at"] == table.alike.measured_at and int(row["case_id"]) < 3]
        values = [row["probes"][0]["after"]["exact"] for row in own]
        assert len(own) == (2 if table.alike.measured_at == "at_2" else 3)
        assert table.arms[0].cells["efficacy/exact"].mean == pytest.approx(100 * np.mean(values))
        assert table.arms[0].cells["efficacy/exact"].n == len(own)
    assert "Only the first 3 records that each run edited." in legend(result)
    main(["compare", *folders, "--first", "3", "--metrics", "efficacy/exact"])
    assert "Only the first 3 records that each run edited." in capsys.readouterr().out
    refused(["compare", *folders, "--first", "0"], "first: 0 is less than 1", capsys)


def test_the_curve(folders: list[str]) -> None:
    """A panel for each measure, a line with bars for each arm."""
    result = comparison(folders, "efficacy/exact,perplexity,cpu_seconds", first=2)
    (figure,) = curve_figures(comparison(folders, "efficacy/exact,perplexity,cpu_seconds"))
    FigureCanvasAgg(figure).draw()
    panels: list[Any] = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == ["efficacy/exact (percent)", "perplexity", "cpu seconds (s)"]
    lines = panels[1].lines[0], panels[2].lines[0]
    assert lines[0].get_xydata().tolist() == [[2, 12], [5, 15], [8, 18]]
    assert lines[1].get_xydata().tolist() == [[2, 1.5], [5, 4], [8, 7]]
    assert "all records edited so far" in figure.get_suptitle()
    (figure,) = curve_figures(result)
    assert "the first 2 records" in figure.get_suptitle()
    main(["compare", *folders, "--first", "2", "--metrics", "efficacy/exact,perplexity", "--out", "out"])
    assert sorted(path.name for path in Path("out").iterdir()) == ["compare.csv", "compare.md", "curve.png"]
    assert "![over the edits](curve.png)" in Path("out/compare.md").read_text()


def test_runs_without_costs_are_compared_all_the_same(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [random_row(case, random) for case in range(4)]
    runs = [str(write_run(tmp_path / name, rows)) for name in "ab"]
    (table,) = comparison(runs, "methods").tables
    assert not {"cpu_seconds", "delta_bytes", "peak_memory", "perplexity", "efficacy/wild"} & table.arms[0].cells.keys()
    assert {"efficacy/success", "efficacy/exact"} <= table.arms[0].cells.keys()
    assert curve_figures(comparison(runs, "methods")) == []


def test_the_set_has_what_the_table_of_methods_needs() -> None:
    assert [measure.name for measure in measures_of("methods")] == list(SETS["methods"])


def test_arms_are_called_without_what_the_title_says() -> None:
    arms = ["rome counterfact single", "memit counterfact single more"]
    short = short_names(arms, "robust/rep_counterfact_test (3 records), regime single")
    assert short == {arms[0]: "rome", arms[1]: "memit more"}
    assert short_names(["rome layer1", "rrome layer1"], "facts") == {
        "rome layer1": "rome layer1", "rrome layer1": "rrome layer1"
    }  # fmt: skip
    same = ["rome single", "rome single single"]
    assert short_names(same, "single") == {name: name for name in same}


def test_one_arm_to_compare_with_in_every_table(tmp_path: Path) -> None:
    """By the name that all tables give it."""
    random = np.random.default_rng(0)
    runs = []
    for regime in ("single", "batch"):
        for name in "ab":
            rows = [random_row(case, random) for case in range(4)]
            runs.append(write_run(tmp_path / f"{name} {regime}", rows, regime=regime))
    result = compare(of_folders(runs, seeds=False), measures_of("main"), "a", paired=True)
    assert [[arm.name for arm in table.arms] for table in result.tables] == [["a", "b"], ["a", "b"]]
    assert all(table.arms[1].differences for table in result.tables)
    one = compare(of_folders(runs, seeds=False), measures_of("main"), "a batch", paired=True)
    assert [table.against for table in one.tables] == [None, "a"]
    assert any("a batch is not in the table of a, b" in note for note in one.notes)


def test_general_ability_is_of_the_whole_model(folders: list[str], caplog: pytest.LogCaptureFixture) -> None:
    for folder, after in zip(folders, (60.0, 40.0), strict=True):
        lines = [
            {"task": "own", "metric": metric, "measured_at": at, "before": 70.0, "after": after + add + (at == "end")}
            for at in ("at_5", "end")
            for metric, add in (("acc", 0), ("acc_norm", 5))
        ]
        Path(folder, "general.json").write_text(json.dumps({"figures": lines}))
    result = comparison(folders, "efficacy/success,ability/own,ability/own/acc_norm")
    tables = {table.alike.measured_at: table for table in result.tables}
    for at, arm, names in (("end", 0, (61, 66)), ("end", 1, (41, 46)), ("at_5", 1, (40, 45))):
        cells = tables[at].arms[arm].cells
        assert (cells["ability/own"].mean, cells["ability/own/acc_norm"].mean) == names
    assert tables["end"].unedited["ability/own"] == 70
    Path(folders[0], "general.json").write_text("{")
    result = comparison(folders, "efficacy/success,ability/own")
    assert f"{Path(folders[0], 'general.json')} is damaged or cannot be read; left out" in caplog.messages
    tables = {table.alike.measured_at: table for table in result.tables}
    assert ["ability/own" in arm.cells for arm in tables["end"].arms] == [False, True]
