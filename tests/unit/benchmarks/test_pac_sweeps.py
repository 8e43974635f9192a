"""PAC's sweep figure: accuracy by a swept option, out of a benchmark's result file."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.paths import ROOT
from tests.unit.analysis.test_path_importance import METHOD, check_image

SCRIPTS = ROOT / "benchmarks" / "paper_tables"


def arm(nodes: int, weight: float, **method: Any) -> dict[str, Any]:
    """An arm as the result files have it."""

    def cell(after: float, before: float | None = 10.0) -> dict[str, Any]:
        return {"before": before, "after": after, "ci": [after - 4, after + 3]}

    figures = {
        "rewrite/token_accuracy": cell(80 + nodes / 10),
        "paraphrase/token_accuracy": cell(60 + nodes / 10),
        "neighborhood/unchanged_tokens": cell(70 - nodes / 2, None),
        "score/tokens_arithmetic": cell(70 - nodes / 10, None),
        "rewrite/exact": cell(50),
    }
    about = METHOD | {"regime": "sequential", "trace": {"nodes": nodes}, "contrast": {"weight": weight, "lr": None}}
    return {"spec": [], "method": about | method, "edit_batch": 10, "figures": figures}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A result file whose arms are not in the order of their values, and misnamed."""
    arms = {
        "nodes_b": arm(40, 0.1),
        "nodes_a": arm(5, 0.1),
        "nodes_c": arm(15, 0.1),
        "lambda_1": arm(15, 1.0),
        "lambda_0": arm(15, 0, scope="edit"),
        "alone": arm(15, 0.1),
    }
    rome = arm(15, 0.1)
    rome["method"] = METHOD | {"method": "ROME"}
    arms |= {"other_1": rome, "other_2": rome, "same_1": arm(15, 0.1), "same_2": arm(15, 1.0)}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"records": 20, "data": "zsre.json", "arms": arms}))
    return path


def sweep(results: Path, prefix: str, x: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "pac_figures.py"), "--results", str(results)]
    command += ["--arms-prefix", prefix, "--x", x, "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("prefix", "x", "values"),
    [("nodes_", "trace.nodes", ["5", "15", "40"]), ("lambda_", "contrast.weight", ["0", "1.0"])],
)
def test_a_sweep(prefix: str, x: str, values: list[str], results: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures" / "pac_0.1"
    done = sweep(results, prefix, x, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{out}.png", f"{out}.csv"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["pac_0.1.csv", "pac_0.1.png"]
    check_image(Path(f"{out}.png"), 800, 500)
    lines = list(csv.DictReader(Path(f"{out}.csv").read_text().splitlines()))
    assert list(dict.fromkeys(line["x"] for line in lines)) == values
    arms = json.loads(results.read_text())["arms"]
    names = {
        "efficacy": "rewrite/token_accuracy",
        "generality": "paraphrase/token_accuracy",
        "locality": "neighborhood/unchanged_tokens",
        "score": "score/tokens_arithmetic",
    }
    assert len(lines) == len(values) * len(names)
    for line in lines:
        cell = arms[line["arm"]]["figures"][names[line["measure"]]]
        assert [float(line[end]) for end in ("after", "ci_low", "ci_high")] == [cell["after"], *cell["ci"]]


def test_the_figure_of_a_sweep(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    spec = importlib.util.spec_from_file_location("pac_figures", SCRIPTS / "pac_figures.py")
    assert spec is not None
    assert spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = json.loads(results.read_text())
    arms = script.chosen(found, "nodes_", "trace.nodes")
    assert [name for _, name, _ in arms] == ["nodes_a", "nodes_c", "nodes_b"]
    title, caption = script.words(found, arms, "trace.nodes")
    assert "20 records of zsre.json, sequential regime, edit batches of 10, seed 3" in title
    assert "differ" not in caption
    rows = script.lines(arms)
    rows[0] |= {"ci_low": None, "ci_high": None}
    (panel,) = script.sweep_figure(rows, "trace.nodes", title, caption).axes
    assert [line.get_label() for line in panel.lines] == ["efficacy", "generality", "locality", "score"]
    assert np.asarray(panel.lines[2].get_ydata()).tolist() == [67.5, 62.5, 50.0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["5", "15", "40"]
    bars = [[segment[:, 1].tolist() for segment in own.get_segments()] for own in panel.collections]
    assert [len(own) for own in bars] == [2, 3, 3, 3]
    assert bars[2] == [[63.5, 70.5], [58.5, 65.5], [46.0, 53.0]]

    other = script.chosen(found, "lambda_", "contrast.weight")
    assert script.words(found, other, "contrast.weight")[1].endswith("The arms differ also in scope.")


@pytest.mark.parametrize(
    ("prefix", "x", "message"),
    [
        (
            "alone",
            "trace.nodes",
            "--arms-prefix: a figure takes two arms named alone... or more; the file has nodes_b, ",
        ),
        (
            "none_",
            "trace.nodes",
            "--arms-prefix: a figure takes two arms named none_... or more; the file has nodes_b, ",
        ),
        ("other_", "trace.nodes", "--x: trace.nodes is not a number of the method of arm other_1"),
        ("nodes_", "trace", "--x: trace is not a number of the method of arm nodes_b"),
        ("same_", "trace.nodes", "--x: the arms same_1 and same_2 have the same trace.nodes, 15"),
    ],
)
def test_what_is_no_sweep_is_said_in_a_line(prefix: str, x: str, message: str, results: Path, tmp_path: Path) -> None:
    done = sweep(results, prefix, x, tmp_path / "out")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(message)
    assert not list(tmp_path.glob("out*"))


def test_a_file_of_another_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for text, message in (("{}", "has no arms"), ("{", "is no JSON"), (None, "No such file")):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        done = sweep(path, "nodes_", "trace.nodes", tmp_path / "out")
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert message in done.stderr
