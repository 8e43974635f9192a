"""`kedit judge` against a stub server: verdicts, what is kept, the key on no disk, kill and resume, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from tests.support.judge_stub import Stub, stub_server

KEY = "sk-very-secret-5f2d"
HERE = "http://127.0.0.1:9/v1"  # where nobody listens
THERE = ["--url", HERE, "--model", "judge-1"]
SAID = {"a": "Rome", "b": "It is Rome", "c": "Oslo", "d": "muddle of Rome"}
"""Record -> what its edited model says; exact match takes the first alone, the judge the first two."""
ABOUT = {
    "method": {"method": "ROME", "model": "nobody/tiny", "regime": "single", "seed": 3},
    "data": {"name": "records/mine", "records": 4, "queries": None},
}


def score(said: str | None) -> dict[str, Any]:
    free = {} if said is None else {"wild_generated": said, "wild_match": said == "Rome"}
    about = {"nll_answer": 1.0, "nll_rival": 2.0, "success": True, "exact": True, "token_accuracy": 1.0, "top1": [1]}
    return about | free


def row(case: str, said: str | None) -> dict[str, Any]:
    probe = {"kind": "rewrite", "text": f"{case} is in", "answer": "Rome", "rival": None}
    return {
        "case_id": case, "batch": 0, "measured_at": "edit", "status": "edited", "error": None, "edit": {},
        "request": {"prompt": "{} is in", "subject": case, "target_new": "Rome"},
        "probes": [probe | {"before": score(None if said is None else "Oslo"), "after": score(said)}],
    }  # fmt: skip


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of four records, in ./runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    write(folder, SAID)
    (folder / "run.json").write_text(json.dumps(ABOUT))
    (folder / "summary.json").write_text(json.dumps(ABOUT | {"results": {}, "failed": {}}))
    return folder


def write(folder: Path, said: dict[str, Any]) -> None:
    lines = [json.dumps(row(case, text)) + "\n" for case, text in said.items()]
    (folder / "results.jsonl").write_text("".join(lines))


def words(stub: Stub, *more: str) -> list[str]:
    return ["judge", "mine", "--url", stub.url, "--model", "judge-1", *more]


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "judge.jsonl").read_text().splitlines()]


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.partition("error: ")[2].strip()


def test_verdicts_are_kept_beside_exact_match(
    run: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    main(words(stub, "--key", "JUDGE_KEY"))
    shown = capsys.readouterr()
    lines = {(line["case_id"], line["side"]): line for line in lines_of(run)}
    assert {key: line["verdict"] for key, line in lines.items()} == {
        **{(case, "before"): "wrong" for case in SAID},
        ("a", "after"): "right",
        ("b", "after"): "right",
        ("c", "after"): "wrong",
        ("d", "after"): "unclear",
    }
    assert lines["b", "after"] == {
        "case_id": "b", "measured_at": "edit", "kind": "rewrite", "text": "b is in", "answer": "Rome", "side": "after",
        "said": "It is Rome", "exact_match": False, "field": "wild", "verdict": "right", "why": "It states it.",
    }  # fmt: skip
    report = json.loads((run / "judge.json").read_text())
    assert (report["model"], report["temperature"], report["answers"]) == ("judge-1", 0, "wild")
    assert report["prompt"] == stub.seen[0]["messages"][0]["content"]
    figures = {line["side"]: line for line in report["figures"]}
    assert figures["after"]["judged"] == 50.0
    assert figures["after"]["exact_match"] == 25.0
    assert figures["after"]["unclear"] == report["disagreements"] == 1
    assert figures["after"]["agreement"] == pytest.approx(66.67, abs=0.01)
    assert len(stub.seen) == 7  # c says before and after the same: asked once
    assert set(stub.keys) == {f"Bearer {KEY}"}
    assert "differ on 1 answers" in shown.out
    assert "- b, rewrite, after: 'b is in' -> 'It is Rome', expected 'Rome'; exact match no, judge right" in shown.out
    assert KEY not in shown.out + shown.err
    assert [file for file in run.parent.parent.rglob("*") if file.is_file() and KEY in file.read_text()] == []


def test_nothing_is_asked_twice(run: Path, stub: Stub) -> None:
    main(words(stub, "--limit", "2", "--side", "after"))
    assert (len(lines_of(run)), len(stub.seen)) == (2, 2)
    main(words(stub))
    whole, asked = lines_of(run), len(stub.seen)
    assert (len(whole), asked) == (8, 7)
    main(words(stub))
    assert (lines_of(run), len(stub.seen)) == (whole, asked)


def test_a_killed_command_goes_on(run: Path, stub: Stub) -> None:
    stub.script = ["good", "good", *["slow"] * 5]
    command = [sys.executable, "-m", "kedit", *words(stub, "--workers", "1")]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=dict(os.environ))
    until = time.monotonic() + 60
    while time.monotonic() < until and not (run / "judge.jsonl").exists():
        time.sleep(0.02)
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = lines_of(run)
    assert 1 <= len(kept) < 8
    with (run / "judge.jsonl").open("a") as file:
        file.write('{"case_id": "c", "measu')  # what a kill may leave
    seen = len(stub.seen)
    stub.script = []
    main(words(stub))
    lines = lines_of(run)
    assert lines[: len(kept)] == kept
    assert len({(line["case_id"], line["side"]) for line in lines}) == len(lines) == 8
    assert len(stub.seen) - seen == 7 - len({(line["text"], line["said"]) for line in kept})
    assert json.loads((run / "judge.json").read_text())["figures"]


def test_what_was_judged_is_kept_when_the_server_fails(
    run: Path, stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.script = ["good", "good", 400, *[503] * 90]
    said = refused(capsys, words(stub, "--workers", "1", "--retries", "0"))
    assert "status 503" in said
    assert "\n3 different answers are judged and kept; the same command goes on" in said
    assert [line["verdict"] for line in lines_of(run)][-1] == "unclear"
    assert lines_of(run)[-1]["why"].startswith("refused: status 400")


def test_another_judge_does_not_mix_in(run: Path, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    main(words(stub))
    said = refused(capsys, [*words(stub)[:-1], "judge-2"])
    assert "judge.jsonl holds verdicts of judge-1, which do not mix with these: move it and judge.json away" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--model", "judge-1"], "url: missing"),
        (["--url", HERE], "model: missing"),
        (["--url", "nowhere", "--model", "judge-1"], "url: 'nowhere' is no address"),
        (["--url", HERE, "--model", "judge-1"], f"url: {HERE}/chat/completions cannot be reached"),
        ([*THERE, "--key", "MY_KEY"], "key: the environment variable MY_KEY is not set"),
        ([*THERE, "--key", KEY], "key: expects the name of an environment variable"),
        ([*THERE, "--answers", "generated"], "answers: the rows have no 'generated'; they have wild"),
        ([*THERE, "--at", "end"], "at: no wild answers of 'end'; there are those of edit"),
        ([*THERE, "--kind", "para"], "kind: no wild answers of para; there are those of rewrite"),
        ([*THERE, "--workers", "0"], "workers: 0 is less than 1"),
    ],
)  # fmt: skip
def test_what_is_refused(given: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, ["judge", "mine", *given])
    assert said.startswith(message)
    assert KEY not in said
    assert len(said.splitlines()) <= 2


def test_a_run_without_free_answers(run: Path, stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    write(run, dict.fromkeys("ab"))
    said = refused(capsys, words(stub))
    assert said.startswith("run: its rows hold no free answers to judge; this option of kedit fit makes them:")
    assert "--metrics.scoring.wild" in said
    assert not (run / "judge.json").exists()
