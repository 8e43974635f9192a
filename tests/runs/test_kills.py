"""Killed at random writes of files, again and again, until it ends; and a checkpoint that does not grow."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kedit.cli import main
from kedit.errors import KeditError
from kedit.runtime.checkpoint_file import seal
from kedit.runtime.journal import Journal, read_journal
from kedit.runtime.run_folder import CHECKPOINT, finished
from tests.support.killing import at_write, difference, same, start, wait
from tests.support.small_runs import QUICK_ROME, city_facts, sequential_run

pytestmark = pytest.mark.slow

N = 6
METHODS: dict[str, dict[str, Any]] = {
    "ROME": QUICK_ROME,
    "PAC": {"model": "PAC", "model.scope": "edit", "model.trace.nodes": 4, "model.trace.contrast_nodes": 4,
            "model.train.passes": 2, "model.locality.weight": 0, "importance.enabled": "true"},
}  # fmt: skip


@pytest.fixture
def command(tiny_folder: Callable[..., str], tmp_path: Path) -> Callable[..., list[str]]:
    """`command("ROME", name)`: a quick sequential run that writes every kind of file."""
    data = city_facts(tmp_path / "facts.jsonl", N)

    def words(method: str, name: str) -> list[str]:
        own = {"metrics.eval_at": f"[2,{N}]", "run.root": tmp_path / "runs", "run.name": name}
        return sequential_run(tiny_folder, data, METHODS[method] | own)

    return words


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_writes(
    method: str, command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kedit.runtime.journal._SLACK", 0)  # PAC's journal begins anew again and again
    log, chance = tmp_path / "log", random.Random(7)
    assert wait(start(command(method, "whole"), log)) == 0, log.read_text()
    resume, kills = [*command(method, "killed"), "--run.resume", "true"], 0
    for _ in range(30):
        status = wait(start(resume, log, at_write(chance.randrange(6, 32), torn=chance.random() < 0.5)))
        if status == 0:
            break
        assert status == -signal.SIGKILL, log.read_text()[-2000:]
        kills += 1
    else:
        pytest.fail("it never ended")
    assert kills >= 2
    assert difference(tmp_path / "runs" / "whole", tmp_path / "runs" / "killed") is None


def test_killed_before_the_last_callback_is_not_finished(command: Callable[..., list[str]], tmp_path: Path) -> None:
    """After the last edit and its checkpoint, before the summary: the importance of PAC's paths is written in between.

    Lightning would skip a loop without epochs, and all hooks of its end.
    """
    log, run = tmp_path / "log", tmp_path / "runs" / "killed"
    assert wait(start(command("PAC", "whole"), log)) == 0, log.read_text()
    resume = [*command("PAC", "killed"), "--run.resume", "true"]

    def no_figure() -> None:
        import os

        import kedit.callbacks.importance as module

        module.write_text = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(2):  # the second time, nothing is left to edit, and Lightning has nothing to run
        assert wait(start(resume, log, no_figure)) == -signal.SIGKILL
        assert (run / "delta" / "delta.safetensors").exists()
        assert not finished(run)
    main(resume)
    assert finished(run)
    assert (run / "importance.png").exists()
    assert difference(tmp_path / "runs" / "whole", run) is None


def test_going_on_from_a_copy(command: Callable[..., list[str]], tmp_path: Path) -> None:
    """`ckpt_path` of another run, whose journal is beside it, and of a checkpoint that holds all edits itself."""
    callback = ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.dirpath", str(tmp_path / "own")]
    callback += ["--trainer.callbacks.every_n_epochs", "4", "--trainer.callbacks.filename", "own"]
    main([*command("ROME", "whole"), *callback])
    whole = tmp_path / "runs" / "whole"
    wait(start(command("ROME", "other"), tmp_path / "log", at_write(24, torn=False)))
    other = tmp_path / "runs" / "other"
    assert not finished(other)
    shutil.copytree(other, tmp_path / "before")
    for name, checkpoint in (("one", other / CHECKPOINT), ("two", tmp_path / "own" / "own.ckpt")):
        main([*command("ROME", name), "--ckpt_path", str(checkpoint)])
        run = tmp_path / "runs" / name
        deltas = [load_file(folder / "delta" / "delta.safetensors") for folder in (whole, run)]
        assert same(*deltas)
        rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
        ends = [json.loads(line) for line in (whole / "results.jsonl").read_text().splitlines()]
        assert [row for row in rows if row["measured_at"] == "end"] == [
            row for row in ends if row["measured_at"] == "end"
        ]
        state = torch.load(run / CHECKPOINT, weights_only=True)["kedit"]
        entries = read_journal(run / "checkpoints" / state["journal"]["file"], state["journal"]["bytes"])
        assert sum(len(entry["outcomes"]) for entry in entries) == N
    for path in (tmp_path / "before").rglob("checkpoints/*"):
        assert path.read_bytes() == (other / path.relative_to(tmp_path / "before")).read_bytes()


@pytest.mark.parametrize("name", ["/victim.txt", "../../victim.txt", "edits-9.bin/../../../victim.txt"])
def test_a_checkpoint_names_no_other_file(
    name: str, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody wrote a checkpoint, with all its checksums, whose journal is a file of the user's."""
    wait(start(command("ROME", "other"), tmp_path / "log", at_write(30, torn=False)))
    other, victim = tmp_path / "runs" / "other", tmp_path / "runs" / "victim.txt"
    content = torch.load(other / CHECKPOINT, weights_only=True)
    journal = content["kedit"]["journal"]
    shutil.copy(other / "checkpoints" / journal["file"], victim)
    before, journal["file"] = victim.read_bytes(), str(victim) if name.startswith("/") else name
    seal(content)
    torch.save(content, other / CHECKPOINT)
    for words in (["--run.name", "other", "--run.resume", "true"], ["--ckpt_path", str(other / CHECKPOINT)]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*command("ROME", "new"), *words])
        assert stop.value.code == 2
        assert "is not the name of a journal" in capsys.readouterr().err
        assert victim.read_bytes() == before
    assert not (tmp_path / "runs" / "new").exists()


def test_a_checkpoint_does_not_grow(command: Callable[..., list[str]], tmp_path: Path) -> None:
    sizes = []
    for n in (1, N):
        main([*command("ROME", f"of-{n}"), "--data.limit", str(n)])
        sizes.append((tmp_path / "runs" / f"of-{n}" / CHECKPOINT).stat().st_size)
    assert abs(sizes[1] - sizes[0]) <= 64
    kept = json.loads((tmp_path / "runs" / f"of-{N}" / "summary.json").read_text())["kept"]
    assert kept == {"edits": N, "deltas_bytes": N * 4 * (16 + 40), "state_bytes": 0, "bytes_per_edit": 224.0}


def test_journal(tmp_path: Path) -> None:
    """A tail that no checkpoint vouches for is cut off; what one vouches for must be there and right."""
    path = tmp_path / "edits-1.bin"
    entries = [{"deltas": [torch.arange(3.0) + i], "outcomes": [({"loss": 0.5}, None)]} for i in range(4)]
    journal = Journal(path)
    journal.append(entries[:2])
    size = journal.size
    journal.append(entries[2:3])
    with path.open("ab") as file:
        file.write(b"torn")
    assert same(read_journal(path, size), entries[:2])
    resumed = Journal(path, size)
    resumed.append(entries[3:])
    assert path.stat().st_size == resumed.size
    assert same(read_journal(path, resumed.size), [*entries[:2], entries[3]])
    whole = path.read_bytes()
    with pytest.raises(KeditError, match="truncated: the checkpoint beside it needs"):
        read_journal(path, len(whole) + 1)
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(KeditError, match=f"damaged at byte {size}: its checksum is wrong"):
        read_journal(path, len(whole))
    path.unlink()
    with pytest.raises(KeditError, match="cannot be read: No such file"):
        read_journal(path, 1)
