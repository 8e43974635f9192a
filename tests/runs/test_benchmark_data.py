"""Runs over the published benchmarks' files: rows with groups and tests, and what is reported of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kedit.cli import main
from tests.support import benchmark_records as made
from tests.support.small_runs import QUICK_ROME, sequential_run

QUICK_LOCFT = {"model": "LocFT", "model.epochs": 2}


def run(tiny_folder: Callable[..., str], folder: Path, name: str, rows: made.Rows, options: dict) -> Path:
    path = folder / "file.json"
    path.write_text(json.dumps(rows))
    more = {"data": name, "run.root": folder, "run.name": "run", "metrics.scoring.generate": "[portability]"}
    main(sequential_run(tiny_folder, path, options | more))
    return folder / "run"


def test_ripple_edits(tiny_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tiny_folder, tmp_path, "RippleEdits", made.RIPPLE, QUICK_ROME)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["data"]["left_out"] == {"no_subject": 1}
    assert summary["data"]["conditions"] == {"probes": 2, "asked": 0}
    results = summary["results"]["end"]
    assert results["portability"]["port_em"]["n_probes"] == 3  # two tests of several probes, one of one
    assert results["portability.logical_generalization"]["exact"]["n_probes"] == 2
    assert results["portability.subject_aliasing"]["port_em"]["n_probes"] == 1
    assert results["neighborhood.forgetfulness"]["unchanged"]["n_records"] == 1
    row = json.loads((folder / "results.jsonl").read_text().splitlines()[0])
    assert [probe.get("test") for probe in row["probes"]] == [None, "any 1", "any 1", "all 2", "all 2", None, None]
    assert row["probes"][1]["group"] == "Logical_Generalization"
    capsys.readouterr()
    main(["show", str(folder), "--table"])
    assert "portability.subject" in capsys.readouterr().out


def test_a_method_that_needs_a_subject_refuses_paragraphs(
    tiny_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(tiny_folder, tmp_path, "UnKE", made.UNKE, QUICK_ROME)
    assert "record 4 names no subject, which ROME needs" in capsys.readouterr().err


def test_paragraphs_are_edited_without_a_subject(tiny_folder: Callable[..., str], tmp_path: Path) -> None:
    folder = run(tiny_folder, tmp_path, "UnKE", made.UNKE, QUICK_LOCFT)
    results = json.loads((folder / "summary.json").read_text())["results"]["end"]
    assert results["portability.sub_question"]["exact"]["n_probes"] == 2
