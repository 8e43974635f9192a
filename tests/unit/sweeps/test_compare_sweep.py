"""`kedit compare` over a sweep in progress, and where `kedit slurm status` looks for one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from kedit.cli import main
from kedit.sweeps.folder import SweepFolder
from kedit.sweeps.spec import read_sweep
from tests.support.comparison_cases import random_row, refused, write_run
from tests.support.sweep_cases import write


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepFolder:
    """A sweep in progress: of two configurations with two seeds one run failed, and one has not begun."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("rome", "memit"):
        write(Path(f"{name}.yaml"), {"model": {"class_path": "ROME"}})
    grid = {"edit.seed": [0, 1]}
    file = write(Path("demo.yaml"), {"configs": ["rome.yaml", "memit.yaml"], "grid": grid})
    plan = SweepFolder(Path("runs/sweeps/demo")).planned(read_sweep(file), file)
    plan.write()
    done = ("rome-seed0", "memit-seed0")
    for numbered in plan.tasks:
        name = numbered.name.rpartition("-")[0]
        if name in done:
            write_run(numbered.folder, [random_row(case, random) for case in range(5)])
        elif name == "rome-seed1":
            numbered.folder.mkdir(parents=True)
        if numbered.folder.exists():
            record = (
                {"state": "done", "seconds": 1.0} if name in done else {"state": "failed", "reason": "no such layer"}
            )
            (numbered.folder / "task.json").write_text(json.dumps(record))
    return plan


def test_a_sweep_in_progress(sweep: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", "demo.yaml", "--against", "rome", "--paired", "--seeds", "--format", "markdown"])
    out = capsys.readouterr().out
    assert "# sweep demo: 2 arms compared" in out
    assert "### Difference to rome" in out
    assert re.search(r"^- failed: rome-seed1-\w{6}: no such layer$", out, re.MULTILINE)
    assert re.search(r"^- not started: memit-seed1-\w{6}$", out, re.MULTILINE)
    main(["compare", "runs/sweeps/demo", "--against", "rome seed0", "--format", "markdown"])
    assert "| memit seed0 |" in capsys.readouterr().out
    refused(
        ["compare", "demo.yaml", "--against", "rome seed1"], "against: rome seed1 has no results yet; there", capsys
    )
    refused(["compare", "demo.yaml", "--against", "rome"], "rome has several seeds: --seeds puts them together", capsys)
    last = next(numbered for numbered in sweep.tasks if numbered.name.startswith("memit-seed0"))
    (last.folder / "summary.json").unlink()
    words = ["compare", "demo.yaml", "--seeds"]
    refused(words, "one arm alone has results, rome: a comparison takes two; without results yet: memit", capsys)
    refused(["compare", "demo.yaml", "--runs", "x"], "there are no results in x, where kedit sweep demo.yaml", capsys)
    refused(["compare", "runs/sweeps/demo", str(last.folder)], "a comparison takes one sweep, or folders of", capsys)


def test_slurm_status_of_a_sweep_that_lies_elsewhere(sweep: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    main(["slurm", "status", "demo.yaml"])
    assert "nothing was begun" not in capsys.readouterr().out
    sweep.path.rename("moved")
    main(["slurm", "status", "demo.yaml"])
    out = capsys.readouterr().out
    assert "4 not started of 4" in out
    assert "nothing was begun in runs/sweeps/demo; where submit was given --out DIR: kedit slurm status DIR" in out
    refused(["slurm", "resubmit", "demo.yaml"], "(where it was given --out DIR: kedit slurm resubmit DIR)", capsys)
