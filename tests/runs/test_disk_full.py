"""A full disk, an unwritable folder: a line that names the path, status 2, and a resumed run with the same bits."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from tests.runs.test_resume import assert_same_run
from tests.support.small_runs import QUICK_ROME, city_facts, sequential_run

pytestmark = pytest.mark.slow

N = 8
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def whole_words(tiny_folder: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A quick sequential run that writes every kind of file."""
    data = city_facts(tmp_path_factory.mktemp("data") / "facts.jsonl", N)
    return sequential_run(tiny_folder, data, QUICK_ROME | {"metrics.eval_at": "[2,8]", "run.name": "one"})


@pytest.fixture
def words(whole_words: list[str]) -> list[str]:
    """A copy of it, to add to."""
    return list(whole_words)


@pytest.fixture(scope="module")
def whole(whole_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    root = tmp_path_factory.mktemp("undisturbed")
    main([*whole_words, "--run.root", str(root)])
    return root / "one"


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Runs the command, which must end with status 2; what it says from its error on."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said[said.index("kedit: error: ") :].splitlines()


@pytest.mark.parametrize(
    ("name", "nth", "batches"),
    [
        ("results.jsonl", 0, 0),
        ("results.jsonl", 4, 3),
        ("edits-1.bin", 5, 5),
        ("last.ckpt", 3, 3),
        ("run.json", 0, 0),
        ("delta.safetensors", 0, N),
        ("curve.png", 0, N),
        ("summary.json", 0, N),
    ],
)
def test_disk_full(
    name: str,
    nth: int,
    batches: int,
    words: list[str],
    whole: Path,
    tmp_path: Path,
    rows_of: Callable[[Path], Rows],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The disk is full when `name` is written for the (nth + 1)-th time: what was appended stays in part."""
    run, left = tmp_path / "runs" / "one", [nth]
    words += ["--run.root", str(tmp_path / "runs"), "--run.resume", "true"]
    sync, replace = os.fsync, os.replace

    def full(path: Path) -> None:
        if path.name == name:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fsync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        try:
            full(path)
        except OSError:
            os.truncate(path, path.stat().st_size - 17)
            raise
        sync(fd)

    def replaced(source: Any, target: Any) -> None:
        full(Path(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replaced)
        said = fails(words, capsys)
    assert said == [
        f"kedit: error: {_path_of(run, name)} cannot be written: No space left on device",
        f"{batches} edit batches are done and kept; to go on, the same command with --run.resume true",
    ]
    assert not (run / "summary.json").exists()
    assert not [path for path in run.rglob("*.partial") if path.name != "results.partial"]
    main(words)
    assert_same_run(whole, run, rows_of)
    for same in ("curve.csv", "curve.png"):
        assert (run / same).read_bytes() == (whole / same).read_bytes()


def _path_of(run: Path, name: str) -> Path:
    folder = {"edits-1.bin": "checkpoints", "last.ckpt": "checkpoints", "delta.safetensors": "delta"}
    return run / folder.get(name, "") / name


@pytest.mark.parametrize("place", ["run.root", "run"])
def test_unwritable_folder(place: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file where a folder should be: also root cannot write there."""
    root = tmp_path / "runs"
    if place == "run.root":
        root.write_text("")
        want = f"kedit: error: run.root: {root} is a file; give a folder"
    else:
        root.mkdir()
        (root / "one").mkdir()
        (root / "one" / "checkpoints").write_text("")
        words += ["--run.resume", "true"]
        want = f"kedit: error: {root / 'one' / 'checkpoints' / 'edits-1.bin'} cannot be written: File exists"
    said = fails([*words, "--run.root", str(root)], capsys)
    assert said[0] == want
    assert len(said) <= 2


def test_a_disk_that_is_really_full(
    words: list[str], whole: Path, tmp_path: Path, rows_of: Callable[[Path], Rows]
) -> None:
    """A small disk, full at whatever comes first; then a larger one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    command = [sys.executable, "-m", "kedit", *words, "--run.root", str(disk), "--run.resume", "true"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        sizes = ["96k", "8m"]
        for size in sizes:
            subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
            done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)
            if size != sizes[-1]:
                assert done.returncode == 2, (size, done.stderr)
                said = done.stderr[done.stderr.index("kedit: error: ") :].splitlines()
                assert len(said) <= 2
                assert str(disk) in said[0]
                assert said[0].endswith("No space left on device")
        assert done.returncode == 0, done.stderr
        assert_same_run(whole, disk / "one", rows_of)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
