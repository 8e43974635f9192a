"""The script for a lent GPU: sections that hang or fail do not stop the others, and what was found is kept."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import run as gpu_run
from benchmarks.gpu.agreement import agreement, figures_of, shares
from benchmarks.gpu.run import Section, Sections, run, table


def python(code: str) -> list[str]:
    """Words of a section that runs `code`."""
    return ["-c", code]


def is_alive(pid: int) -> bool:
    """Whether the process runs: one that nobody has waited for is dead."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def test_what_hangs_is_killed_and_keeps_its_figures(tmp_path: Path) -> None:
    """Its children too, also where it ignores SIGTERM."""
    file, child = tmp_path / "figures.json", tmp_path / "child"
    code = (
        "import pathlib, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen(['sleep', '100']); "
        f"pathlib.Path({str(child)!r}).write_text(str(child.pid)); "
        f"pathlib.Path({str(file)!r}).write_text('{{\"lanes\": 3}}'); time.sleep(60)"
    )
    result = run(Section("hangs", python(code), 1, lambda: gpu_run._json(file)), 6.0, tmp_path / "log.txt")
    assert result["status"] == "out of time"
    assert result["figures"] == {"lanes": 3}
    end = time.monotonic() + 10  # a process that was killed is gone when the kernel comes to it
    while (alive := is_alive(int(child.read_text()))) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive


def test_sections_go_on_after_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [Section("one", python("raise SystemExit(3)"), 5), Section("two", python("print('said')"), 5)]
    monkeypatch.setattr(Sections, "all", lambda self: iter(chosen))
    places = ["--out", str(tmp_path), "--scratch", str(tmp_path), "--files", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["run", *places, "--seconds", "600", "--dry"])
    with pytest.raises(SystemExit, match="dry run failed"):
        gpu_run.main()
    found = json.loads((tmp_path / "results.json").read_text())
    assert {name: result["status"] for name, result in found.items()} == {"one": 3, "two": 0}
    assert "two: done" in (tmp_path / "summary.txt").read_text()
    assert "said" in (tmp_path / "log.txt").read_text()


def test_the_limits_fit_into_ten_minutes(tmp_path: Path) -> None:
    sections = list(Sections(tmp_path, tmp_path, tmp_path, dry=False).all())
    assert sum(section.limit for section in sections) <= 600
    assert len({section.name for section in sections}) == len(sections)


def test_the_table_has_numbers_and_leaves_settings_out() -> None:
    figures = {"8 lanes": {"edits_per_s": 1.23456, "settings": {"model": "x"}, "out_of_memory": True}}
    lines = table({"rome v*": {"status": 0, "seconds": 3, "figures": figures}}).splitlines()
    assert lines == ["rome v*: done, 3 s", "    8 lanes edits_per_s: 1.235", "    8 lanes out_of_memory: True"]


def rows(path: Path, nll: float, success: bool) -> Path:
    """Result rows of a run: one record that was edited, one that failed."""
    after = {"nll_answer": nll, "nll_rival": 2.0, "success": success, "exact": True}
    probes: list[dict[str, Any]] = [{"kind": "rewrite", "text": text, "after": after} for text in ("a b", "c")]
    row = {"case_id": "x", "measured_at": "edit", "status": "edited", "probes": probes}
    path.write_text("".join(json.dumps(one) + "\n" for one in (row, row | {"case_id": "y", "status": "failed"})))
    return path


def test_rows_of_two_runs_are_compared(tmp_path: Path) -> None:
    one = figures_of(rows(tmp_path / "one", 1.0, True))
    other = figures_of(rows(tmp_path / "other", 1.5, False))
    other["more"] = {}
    assert shares(one) == {"rewrite": 1.0}
    found = {"probes": 2, "alone": 1, "success": 0.0, "exact": 1.0, "nll_median": 0.5, "nll_max": 0.5}
    assert agreement(one, other) == found
