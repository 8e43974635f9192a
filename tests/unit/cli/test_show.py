"""`kedit show` on folders made by hand: what is printed, and what is said of runs and records that there are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main

Row = dict[str, Any]


def score(nll: float, exact: bool, success: bool, top1: int = 1, **more: Any) -> Row:
    about = {"nll_answer": nll, "nll_rival": 1.0, "success": success, "exact": exact, "token_accuracy": float(exact)}
    return about | {"top1": [top1]} | more


def probe(kind: str, text: str, before: Row | None, after: Row | None, answer: str = "Rome") -> Row:
    return {"kind": kind, "text": text, "answer": answer, "rival": "Paris", "before": before, "after": after}


def row(case: str, works: bool = True, measured_at: str = "edit", **more: Any) -> Row:
    free = {"generated": "Rome, Italy" if works else "Paris", "generated_match": works}
    probes = [
        probe(
            "rewrite",
            f"{case} is in",
            score(5.0, False, False, generated="Paris, France", generated_match=False),
            score(0.1, works, works, **free),
        ),
        probe("paraphrase", f"You see {case} in", score(5.0, False, False), score(0.5, False, True)),
        probe("neighborhood", "The Louvre is in", score(0.1, True, True), score(0.2, False, True, 2), "Paris"),
    ]
    request = {"prompt": "{} is in", "subject": case, "target_new": "Rome", "target_true": "Paris"}
    edit = {"loss": 0.04863200709, "steps": 35, "layers": [1, 2]}
    return {
        "case_id": case, "batch": 0, "measured_at": measured_at, "status": "edited", "error": None,
        "request": request, "edit": edit, "protocol": {}, "probes": probes,
    } | more  # fmt: skip


ABOUT = {
    "method": {"method": "ROME", "model": "nobody/tiny", "regime": "single", "seed": 3},
    "data": {"name": "records/mine", "records": 3, "queries": None},
    "provenance": {"kedit": "9.9", "commit": "abcdef"},
    "written": "2026-01-02",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of three records, one of which did not work, in ./runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "runs" / "mine"
    (folder / "deltas" / "eiffel").mkdir(parents=True)
    write(folder, [row("eiffel"), row("tower", works=False), row("bridge")])
    (folder / "run.json").write_text(json.dumps(ABOUT))
    (folder / "summary.json").write_text(json.dumps(ABOUT | {"results": {}, "failed": {}}))
    cost = {"case_id": "eiffel", "batch": 0, "seconds": 1.5, "cpu_seconds": 1.25, "delta_bytes": 800}
    (folder / "costs.jsonl").write_text(json.dumps(cost) + "\n")
    return folder


def write(folder: Path, rows: list[Row]) -> None:
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(["show", *words])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["show", *words])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("kedit: error: ")


def test_every_record(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "mine")
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[0] == "ROME on nobody/tiny, records/mine, regime single, seed 3"
    assert "? stands for tokens that cannot be read: no tokenizer of nobody/tiny is here" in out
    assert lines[1] == "3 records; 2026-01-02, kedit 9.9, commit abcdef"
    start = next(i for i, line in enumerate(lines) if line.startswith("eiffel ─"))
    assert lines[start + 1 : start + 10] == [
        "eiffel is in: Rome (before: Paris)",
        "  the edited prompt (rewrite): Rome",
        "    eiffel is in                                            0.7 -> 90.5 yes",
        "      Paris, France -> Rome, Italy",
        "  in other words (paraphrase): Rome",
        "    You see eiffel in                                       0.7 -> 60.7 prefers",
        "  neighbours, which should stay as they were (neighborhood): Paris",
        "    The Louvre is in                                       90.5 -> 81.9 changed",
        "      Paris -> ?",
    ]
    assert "3 shown, measured after each edit" in out
    assert shown(capsys, "runs/mine") == out.replace(str(folder), "runs/mine")


def test_some_records(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "mine", "--failed")
    assert "tower ─" in out
    assert "eiffel" not in out
    out = shown(capsys, "mine", "--kind", "paraphrase", "--limit", "2")
    assert "You see tower in" in out
    assert "Louvre" not in out
    assert "2 shown, measured after each edit; 1 more (--limit)" in out
    write(folder, [row("eiffel")])
    assert "none: all came out as they should" in shown(capsys, "mine", "--failed")
    assert "eiffel ─" in shown(capsys, "mine", "--failed", "--kind", "neighborhood")


def test_a_case_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, [row("eiffel", measured_at="editor"), row("eiffel"), row("eiffel", measured_at="at_10"), row("b")])
    out = shown(capsys, "mine", "eiffel")
    assert "the editor alone, measured after each edit" in out
    assert out.count("the edited prompt") == 2
    assert "edit: loss 0.04863, steps 35" in out
    assert "time: 1.50 s, 1.25 CPU s; its delta has 800 bytes" in out
    assert f"delta: {Path('runs/mine/deltas/eiffel')}" in out
    assert shown(capsys, "mine", "eiffel", "--at", "editor").count("the edited prompt") == 1
    assert "delta: none is kept" in shown(capsys, "mine", "b")
    write(folder, [row("eiffel", measured_at="at_5"), row("eiffel", measured_at="at_10")])
    assert "measured after 10 edits" in shown(capsys, "mine", "eiffel")
    write(folder, [row("eiffel"), row("b")])
    (folder / "delta").mkdir()
    assert "delta: runs/mine/delta (with all edits)" in shown(capsys, "mine", "b")
    for line in (
        "nonsense",
        '{"case_id": "eiffel"}',
        '{"case_id": "eiffel", "seconds": "a", "delta_bytes": null}',
        "[]",
    ):
        (folder / "costs.jsonl").write_text(f"{line}\n")
        assert "costs.jsonl is damaged" in shown(capsys, "mine", "eiffel")


def test_the_last_moment_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, [row("eiffel"), row("eiffel", works=False, measured_at="end")])
    assert "measured after the last edit" in shown(capsys, "mine")
    assert "eiffel ─" in shown(capsys, "mine", "--failed")
    assert "none: all" in shown(capsys, "mine", "--failed", "--at", "edit")


def test_damaged_lines_are_left_out_and_named(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    good = json.dumps(row("eiffel")) + "\n"
    wrong = json.dumps(row("x") | {"probes": [{"kind": 3}]}) + "\n"
    (folder / "results.jsonl").write_text(good + "{broken\n" + wrong + "[1]\n" + good[:-9])
    out = shown(capsys, "mine")
    assert "1 shown" in out
    assert caplog.messages == ["runs/mine/results.jsonl: left out, as damaged or unfinished: line 2, 3, 4, 5"]


def test_an_edit_that_was_not_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = row("eiffel", status="failed", error="v* is not finite")
    for one in failed["probes"]:
        one |= {"before": None, "after": None}
    write(folder, [failed])
    out = shown(capsys, "mine", "--failed")
    assert "not edited: v* is not finite" in out
    assert "->" not in out.split("1 shown")[0]


def test_control_characters_are_written_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = row("eiffel")
    odd["probes"][1]["text"] = "red \x1b[31m and [bold]not bold[/bold]"
    write(folder, [odd])
    out = shown(capsys, "mine")
    assert "\x1b" not in out
    assert "\\x1b[31m and [bold]not bold[/bold]" in out


def test_unfinished_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "summary.json").unlink()
    assert "3 records; not finished: what it has measured so far" in shown(capsys, "mine")
    (folder / "results.jsonl").unlink()
    assert "no record has been measured yet" in shown(capsys, "mine")


def test_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of an unfinished run it is computed from its rows."""
    (folder / "summary.json").unlink()
    out = shown(capsys, "mine", "--table")
    assert "efficacy" in out
    assert "66.7" in out
    assert "generated" in out


def test_what_there_is_not(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.parent / "empty").mkdir()
    for words, message in (
        (["mime"], "run: there is no run 'mime' here; did you mean mine?"),
        (["something-else"], "run: there is no run 'something-else' here; there are mine"),
        (["x" * 5000], "run: there is no run"),
        (["runs"], "run: runs is a folder of runs; give one of them: runs/mine"),
        (["runs/empty"], "run: the folder runs/empty holds no run.json, so no run has begun in it"),
        (
            ["runs/mine/results.jsonl"],
            "run: runs/mine/results.jsonl is a file; give the folder of a run, e.g. runs/mine",
        ),
        (["mine", "eifel"], "case: runs/mine has no record 'eifel'; did you mean eiffel?"),
        (["mine", "99"], "case: runs/mine has no record '99'; there are eiffel, tower, bridge"),
        (
            ["mine", "--kind", "paraphrases"],
            "kind: there is no kind of probe 'paraphrases' in this run; did you mean p",
        ),
        (["mine", "--at", "end"], "at: nothing was measured at 'end'; there are edit"),
        (["mine", "--limit", "0"], "limit: 0 is not 1 or more"),
        (["mine", "--limit", "x"], "limit: "),
        (["mine", "--table", "--failed"], "table: is of the whole run; leave out failed"),
        (["mine", "eiffel", "--failed"], "case: one record is shown whole; leave out --failed and --limit"),
        (["mine", "--colour", "red"], "colour: there is no such option"),
        ([], "run: which one? There are mine"),
    ):
        assert refused(capsys, *words).startswith(message), words
    (folder / "summary.json").write_text('{"method": 3}')
    assert refused(capsys, "mine") == "runs/mine/summary.json is damaged, or no file of a run of kedit's"


def test_it_is_quick(folder: Path) -> None:
    code = (
        "import sys\nfrom kedit.cli.main import main\nmain(['show', 'mine', 'eiffel'])\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
