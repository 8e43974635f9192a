"""`kedit collect`: numbers as the summaries have them, nothing incomparable side by side, nothing missing unsaid."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from kedit.sweeps.collect import collected
from kedit.sweeps.collect_tables import as_markdown
from kedit.sweeps.folder import SweepFolder
from kedit.sweeps.spec import read_sweep
from tests.support.sweep_cases import write

MethodOf = Callable[[str], dict[str, Any]]


def cell(after: float, before: float | None = 1.23456) -> dict[str, Any]:
    """A cell as `summary.json` has it."""
    change = None if before is None else after - before
    ends = [after - 5.4321, after + 4.3219]
    counts = {"n_records": 8, "n_probes": 16}
    return {"before": before, "after": after, "change": change, "ci": ends, "change_ci": ends} | counts


def summary(after: float, seed: int = 0, regime: str = "single", **protocol: Any) -> dict[str, Any]:
    """What a run leaves."""
    kinds = {
        "rewrite": {"success": cell(after), "exact": cell(after / 2), "p_answer": cell(1.0)},
        "neighborhood": {"success": cell(90.0), "exact": cell(3.0), "unchanged": cell(80.0, None)},
        "score": {"success": cell(after / 3)},
    }
    sequential = regime == "sequential"
    return {
        "protocol": {
            "regime": regime,
            "measured": "after each edit, and after the last" if sequential else "after its own edit",
            "scorer": "teacher-forced",
            "scoring": {"generate": ["rewrite"], "port_suffix": ""} | protocol,
            "fast_dev_run": False,
        },
        "method": {
            "method": "ROME", "model": "tiny", "model_fingerprint": "f" * 20, "dtype": "float32", "seed": seed,
            "regime": regime,
        },
        "data": {"name": "facts/test", "fingerprint": "0123456789abcdef", "records": 8},
        "provenance": {"commit": "abc"},
        "failed": {},
        "results": {"edit": kinds, "end": kinds} if sequential else {"edit": kinds},
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SweepFolder]:
    """A sweep's folder with made-up results: task names -> summaries, or what task.json says of one without."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def make(results: Callable[[dict[str, str]], dict[str, Any] | None], **content: Any) -> SweepFolder:
        for name in ("rome_smollm2", "memit_smollm2"):
            write(tmp_path / f"{name}.yaml", {"model": {"class_path": "ROME"}})
        file = write(
            Path("demo.yaml"),
            {"configs": ["rome_smollm2.yaml", "memit_smollm2.yaml"], "grid": {"edit.seed": [0, 1]}} | content,
        )
        plan = SweepFolder(Path("runs/sweeps/demo")).planned(read_sweep(file), file)
        plan.write()
        for numbered in plan.tasks:
            result = results(dict(numbered.task.labels))
            if result is None:
                continue
            numbered.folder.mkdir(parents=True, exist_ok=True)
            done = "results" in result
            record = {"state": "done", "reason": None} if done else result
            (numbered.folder / "task.json").write_text(json.dumps(record))
            if done:
                (numbered.folder / "summary.json").write_text(json.dumps(result))
        return plan

    return make


def table_rows(text: str) -> list[tuple[str, ...]]:
    """Cells of a Markdown table's lines, without headers."""
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return [row for row in cells if row[0] != "measure"]


def test_numbers_are_those_of_the_summaries(
    folder: Callable[..., SweepFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    """One seed: with its interval. Several: mean and standard deviation. In CSV: every run, every digit."""
    values = {("rome_smollm2", "seed0"): 91.234567, ("rome_smollm2", "seed1"): 95.5, ("memit_smollm2", "seed0"): 70.25}

    def result(labels: dict[str, str]) -> dict[str, Any] | None:
        seed = labels["edit.seed"]
        after = values.get((labels["config"], seed))
        return None if after is None else summary(after, int(seed[-1]))

    folder(result)
    main(["collect", "demo.yaml", "--format", "markdown"])
    out = capsys.readouterr().out
    rows = {(row[0], row[1]): row[2:] for row in table_rows(out)}
    mean, spread = statistics.fmean([91.234567, 95.5]), statistics.stdev([91.234567, 95.5])
    assert rows["efficacy success", "rome_smollm2"] == ("1.2", f"{mean:.1f}", f"± {spread:.1f} (2 seeds)")
    assert rows["efficacy success", "memit_smollm2"] == ("1.2", "70.2", "[64.8, 74.6]")
    assert rows["locality unchanged", "memit_smollm2"] == ("", "80.0", "[74.6, 84.3]")
    assert not any("p_answer" in name or name == "locality exact" for name, _ in rows)
    assert re.search(r"^# sweep demo: 3 of 4 tasks done$", out, re.MULTILINE)
    assert re.search(r"^- not started: memit_smollm2-seed1-\w{6}$", out, re.MULTILINE)

    main(["collect", "demo.yaml", "--format", "csv", "--out", "t/table.csv"])
    text = Path("t/table.csv").read_text()
    written = list(csv.DictReader(io.StringIO(text)))
    assert len(written) == 3 * 7
    row = next(row for row in written if (row["kind"], row["metric"], row["seed"]) == ("rewrite", "success", "0"))
    assert float(row["after"]) == 91.234567
    assert (float(row["ci_low"]), float(row["ci_high"])) == (91.234567 - 5.4321, 91.234567 + 4.3219)
    assert row["grid:edit.seed"] == "0"
    assert (row["measured_at"], row["commit"], row["records"], row["n_probes"]) == ("edit", "abc", "8", "16")
    assert {row["metric"] for row in written} == {"success", "exact", "p_answer", "unchanged"}


def test_protocols_and_data_are_kept_apart(
    folder: Callable[..., SweepFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    def result(labels: dict[str, str]) -> dict[str, Any]:
        if labels["config"] == "memit_smollm2":
            return summary(50.0, regime="sequential")
        other = labels["model.init_args.layer"] == "layer6"
        made = summary(60.0, port_suffix="The answer is") if other else summary(70.0)
        if labels["data.init_args.limit"] == "limit4":
            made["data"] |= {"fingerprint": "f" * 16, "records": 4}
        return made

    grid = {"model.init_args.layer": [5, 6], "data.init_args.limit": [4, 8]}
    plan = folder(result, grid=grid)
    groups = collected(plan).groups
    assert len(groups) == 6
    for group in groups:
        assert len({(line.kind, line.metric, line.setting) for line in group.lines}) == len(group.lines)
    text = as_markdown(collected(plan))
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert len(set(titles)) == 6
    assert 'scoring.port_suffix = "The answer is"' in titles[2]
    assert "measured after each edit" in titles[4]
    assert "measured after the last edit" in titles[5]
    assert "facts/test (4 records, ffffff)" in titles[0]
    assert "| efficacy success | rome_smollm2 layer5 limit4 | 1.2 | 70.0 |" in text


def test_terminal_fits_80_columns(folder: Callable[..., SweepFolder], capsys: pytest.CaptureFixture[str]) -> None:
    def result(labels: dict[str, str]) -> dict[str, Any]:
        if labels["config"] == "rome_smollm2":
            return summary(88.0)
        return {"state": "failed", "status": 2, "reason": "model.layer: there is no layer [99]; this model has 3"}

    folder(result, grid={"lm.name": ["x/a-long-name-of-a-model", "y/another-one"]})
    main(["collect", "runs/sweeps/demo"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "rome_smollm2 a-long-name-of-a-model" in out
    assert re.search(r"88\.0 +\[82\.6, 92\.3\]", out)
    below = re.sub(r"\s+", " ", out[out.index("sweep demo: 2 of 4 tasks done") :])
    assert re.search(r"failed: memit_smollm2-another_one-\w{6}: model.layer: there is no layer \[99\];", below)
    main(["collect", "runs/sweeps/demo", "--out", "table.txt"])
    assert "efficacy success" in Path("table.txt").read_text()


def test_failed_records_and_damaged_summaries_are_told(folder: Callable[..., SweepFolder]) -> None:
    def result(labels: dict[str, str]) -> dict[str, Any]:
        return summary(88.0) | {"failed": {"7": "not finite"} if labels["config"] == "rome_smollm2" else {}}

    plan = folder(result, grid={})
    (plan.tasks[1].folder / "summary.json").write_text("{")
    notes = collected(plan).notes
    assert re.fullmatch(r"1 of 8 records failed: rome_smollm2-\w{6}", notes[0])
    assert re.fullmatch(r"damaged: memit_smollm2-\w{6}: summary.json cannot be read", notes[1])


def test_nothing_done_yet(folder: Callable[..., SweepFolder], capsys: pytest.CaptureFixture[str]) -> None:
    folder(lambda labels: None)
    main(["collect", "demo.yaml"])
    out = capsys.readouterr().out
    assert "0 of 4 tasks done" in out
    assert out.count("not started: ") == 4


def test_a_file_that_cannot_be_written(folder: Callable[..., SweepFolder], capsys: pytest.CaptureFixture[str]) -> None:
    folder(lambda labels: summary(1.0))
    for out, message in [("demo.yaml/t.md", "out: demo.yaml cannot be made"), ("runs", "runs cannot be written")]:
        with pytest.raises(SystemExit) as stop:
            main(["collect", "demo.yaml", "--out", out])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["collect", "demo.yaml", "--format", "xml"])
    assert capsys.readouterr().err.startswith("kedit: error: format: expects one of terminal, markdown, csv")
