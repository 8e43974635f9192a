"""How much memory is left: of the machine, of control groups of both versions, of the process's own limit."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from kedit.runtime import free_memory as module
from kedit.runtime.free_memory import free_memory

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB left."""
    monkeypatch.setattr(module, "PROC", tmp_path / "proc")
    monkeypatch.setattr(module, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    write(tmp_path / "proc" / "meminfo", f"MemTotal: 1 kB\nMemAvailable:   {8 * 2**20} kB\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_the_machine_says(root: Path) -> None:
    assert free_memory() == 8 * GIB
    (root / "proc" / "meminfo").unlink()
    assert free_memory() is None


def test_groups_of_version_2_and_those_around_them(root: Path) -> None:
    write(root / "proc" / "self" / "cgroup", "0::/job/step\n")
    write(root / "cgroup" / "job" / "memory.max", f"{3 * GIB}\n")
    write(root / "cgroup" / "job" / "memory.current", f"{2 * GIB}\n")
    write(root / "cgroup" / "job" / "memory.stat", f"anon 5\ninactive_file {GIB // 2}\n")
    write(root / "cgroup" / "job" / "step" / "memory.max", "max\n")
    write(root / "cgroup" / "job" / "step" / "memory.current", "7\n")
    assert free_memory() == GIB + GIB // 2


def test_groups_of_version_1(root: Path) -> None:
    write(root / "proc" / "self" / "cgroup", "4:cpu,memory:/job\n3:cpuset:/other\n")
    write(root / "cgroup" / "memory" / "job" / "memory.limit_in_bytes", str(3 * GIB))
    write(root / "cgroup" / "memory" / "job" / "memory.usage_in_bytes", str(4 * GIB))
    assert free_memory() == 0, "what is used is more than what is allowed"


def test_a_limit_of_the_process(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (5 * GIB, 5 * GIB))
    write(root / "proc" / "self" / "statm", f"{GIB // resource.getpagesize()} 1 1\n")
    assert free_memory() == 4 * GIB
