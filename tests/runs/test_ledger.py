"""Lines of `results.jsonl` that are lost, cut, altered or doubled are named, when a run goes on and at its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from kedit.errors import KeditError
from kedit.runtime.ledger import LEDGER, Ledger, compare, put_right, told
from kedit.runtime.run_folder import CHECKPOINT, append_rows
from tests.support.killing import at_write, difference, start, wait
from tests.support.small_runs import QUICK_ROME, city_facts, sequential_run

N = 6
Slip = Callable[[list[bytes]], list[bytes]]


def rows(n: int) -> list[dict[str, Any]]:
    return [{"case_id": f"fact-{i}", "measured_at": "edit", "p": i / 7} for i in range(n)]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Ledger]:
    """A results file of six lines and its ledger."""
    ledger, path = Ledger(tmp_path / LEDGER), tmp_path / "results.jsonl"
    for row in rows(6):
        ledger.note([row], append_rows(path, [row]))
    return path, ledger


def flip(line: bytes) -> bytes:
    """A line whose number was altered."""
    return line.replace(b"0.", b"1.")


SLIPS: dict[str, tuple[Slip, list[str], list[int], list[int]]] = {
    "nothing": (lambda lines: lines, [], [], []),
    "lost": (lambda lines: [*lines[:2], *lines[3:]], ["fact-2"], [], []),
    "cut": (lambda lines: [*lines[:5], lines[5][:-9]], ["fact-5"], [], [6]),
    "altered": (lambda lines: [*lines[:3], flip(lines[3]), *lines[4:]], ["fact-3"], [], [4]),
    "doubled": (lambda lines: [*lines[:2], *lines[1:]], [], [3], []),
    "added": (lambda lines: [*lines, b"{}\n"], [], [], [7]),
    "exchanged": (lambda lines: [lines[1], lines[0], *lines[2:]], [], [], []),
    "all lost": (lambda lines: [], [f"fact-{i}" for i in range(6)], [], []),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_compare(slip: str, written: tuple[Path, Ledger]) -> None:
    path, ledger = written
    whole = path.read_bytes().splitlines(keepends=True)
    change, lost, doubled, foreign = SLIPS[slip]
    path.write_bytes(b"".join(change(whole)))
    found = compare(path, ledger.entries)
    assert [entry.case for entry in found.lost] == lost
    assert (found.doubled, found.foreign) == (doubled, foreign)
    said = told(path, found, ledger.entries)
    assert len(said) == bool(lost) + bool(doubled)
    assert all(f"{name} (edit)" in said[0] for name in lost[:5])
    put_right(path, path, found)
    assert path.read_bytes() == b"".join(line for i, line in enumerate(whole) if f"fact-{i}" not in lost)
    assert path.with_suffix(".damaged.jsonl").exists() == bool(lost)


def test_a_ledger_is_read_as_far_as_a_checkpoint_vouches_for_it(written: tuple[Path, Ledger], tmp_path: Path) -> None:
    path, ledger = written
    card, entries = ledger.save(), list(ledger.entries)
    row = {"case_id": "fact-6", "measured_at": "edit"}
    ledger.note([row], append_rows(path, [row]))
    ledger.save()
    again = Ledger(tmp_path / LEDGER)
    again.restore(tmp_path / LEDGER, card)
    assert again.entries == entries
    assert again.save() == card
    whole = (tmp_path / LEDGER).read_bytes()
    for damaged in (whole[:20], whole.replace(b"fact-2", b"fact-3"), b""):
        (tmp_path / LEDGER).write_bytes(damaged)
        with pytest.raises(KeditError, match="is not what the checkpoint beside it vouches for"):
            Ledger(tmp_path / "other").restore(tmp_path / LEDGER, card)
    for bad in (None, [], {"bytes": "1", "crc": 0}, {"bytes": 1}):
        with pytest.raises(KeditError, match="does not say which result lines are its"):
            Ledger(tmp_path / "other").restore(tmp_path / LEDGER, bad)


@pytest.fixture
def command(tiny_folder: Callable[..., str], tmp_path: Path) -> Callable[..., list[str]]:
    """`command(name)`: a quick sequential run."""
    data = city_facts(tmp_path / "facts.jsonl", N)
    return lambda name: sequential_run(
        tiny_folder, data, QUICK_ROME | {"run.root": tmp_path / "runs", "run.name": name}
    )


def _interrupted(command: Callable[..., list[str]], tmp_path: Path, name: str = "one") -> Path:
    """The folder of a run that was killed after some edits."""
    folder = tmp_path / "runs" / name
    wait(start(command(name), tmp_path / "log", at_write(30, torn=False)))
    assert (folder / CHECKPOINT).exists()
    assert not (folder / "summary.json").exists()
    return folder


def test_lines_lost_before_a_run_goes_on(
    command: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main(command("whole"))
    folder, whole = _interrupted(command, tmp_path), tmp_path / "runs" / "whole"
    path = folder / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) > 2
    path.write_bytes(b"".join([lines[0], flip(lines[1]), lines[2], lines[2], *lines[3:]]))
    main([*command("one"), "--run.resume", "true"])
    assert f"{path}: 1 of " in caplog.text
    assert "lines are lost, cut or altered (not what the run wrote: line 2): fact-1 (edit)" in caplog.text
    assert f"{path}: doubled lines are left out: line 4" in caplog.text
    want = (whole / "results.jsonl").read_bytes().splitlines(keepends=True)
    assert path.read_bytes().splitlines(keepends=True) == [want[0], *want[2:]]
    assert (folder / "results.damaged.jsonl").exists()
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, folder)]
    assert "lost" not in summaries[0]
    assert summaries[1]["lost"] == ["fact-1 (edit)"]
    assert summaries[1]["results"]["end"] == summaries[0]["results"]["end"]


def test_lines_doubled_before_a_run_goes_on(command: Callable[..., list[str]], tmp_path: Path) -> None:
    """Nothing is lost: it ends like the undisturbed one."""
    main(command("whole"))
    folder = _interrupted(command, tmp_path)
    path = folder / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[::-1], lines[0], b'{"case']))
    main([*command("one"), "--run.resume", "true"])
    assert difference(tmp_path / "runs" / "whole", folder) is None


def test_lines_altered_while_a_run_lasts(
    command: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its end they are named, and the summary is without them."""
    from kedit.callbacks import EditMetrics

    path, last_rows = tmp_path / "runs" / "one" / "results.jsonl", EditMetrics.on_last_edit

    def altered(*what: Any) -> Any:
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([flip(lines[0]), *lines[1:], b'{"when": "edit", "case_id": "foreign"}\n']))
        return last_rows(*what)

    monkeypatch.setattr(EditMetrics, "on_last_edit", altered)
    main(command("one"))
    assert "1 of 12 lines are lost, cut or altered (not what the run wrote: line 1, 7): fact-0 (edit)" in caplog.text
    summary = json.loads((path.parent / "summary.json").read_text())
    assert summary["lost"] == ["fact-0 (edit)"]
    assert b"foreign" not in path.read_bytes()
    assert len(path.read_bytes().splitlines()) == 2 * N - 1


def test_going_on_elsewhere_takes_the_lines_along(command: Callable[..., list[str]], tmp_path: Path) -> None:
    main(command("whole"))
    folder = _interrupted(command, tmp_path)
    before = (folder / "results.jsonl").read_bytes()
    main([*command("two"), "--ckpt_path", str(folder / CHECKPOINT)])
    assert difference(tmp_path / "runs" / "whole", tmp_path / "runs" / "two") is None
    assert (folder / "results.jsonl").read_bytes() == before


def test_a_ledger_that_is_lost(
    command: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on with the lines as they are, and says that they are not checked."""
    main(command("whole"))
    folder = _interrupted(command, tmp_path)
    (folder / CHECKPOINT.parent / LEDGER).unlink()
    main([*command("one"), "--run.resume", "true"])
    assert "the result lines of the edits before are not checked" in caplog.text
    assert difference(tmp_path / "runs" / "whole", folder) is None
