"""On one GPU the same run has the same bits, also when it was killed; on two devices it has nearly the same numbers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kedit.covariance import collect
from tests.gpu.conftest import Run, rows
from tests.support.killing import difference
from tests.support.small_runs import FEW_STEPS, QUICK_MEMIT, QUICK_ROME
from tests.support.tiny_models import tiny_lm

pytestmark = pytest.mark.gpu

SEQUENTIAL = {"edit.regime": "sequential", "metrics.measure": "both"}
METHODS: dict[str, dict[str, Any]] = {
    "ROME": QUICK_ROME | SEQUENTIAL,
    "MEMIT": QUICK_MEMIT | SEQUENTIAL | {"data.batch_size": 2},
    "PAC": {"model": "PAC", "model.train.passes": 4, "model.trace.nodes": 8, "data.batch_size": 2} | SEQUENTIAL,
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_repeated_has_the_same_bits(run: Run, method: str) -> None:
    one, other = (run(name, 6, METHODS[method]) for name in ("one", "other"))
    assert difference(one, other) is None


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_is_resumed_bit_for_bit(
    run: Run, words: Callable[..., list[str]], tmp_path: Path, method: str
) -> None:
    """A process of its own is killed after some edits: a fork could not use the GPU that this process has used."""
    whole = run("whole", 12, METHODS[method])
    killed = words("killed", 12, METHODS[method] | {"run.resume": "true"})
    process = subprocess.Popen([sys.executable, "-m", "kedit", *killed], env=os.environ | {"PYTHONUNBUFFERED": "1"})
    results = tmp_path / "runs" / "killed" / "results.jsonl"
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if results.exists() and results.read_bytes().count(b"\n") >= 3:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
    resumed = run("killed", 12, METHODS[method] | {"run.resume": "true"})
    assert difference(whole, resumed) is None


def test_the_devices_agree(run: Run) -> None:
    """ROME in float32: about the same delta, and about the same -log p everywhere."""
    options = QUICK_ROME | FEW_STEPS | {"edit.regime": "sequential"}
    here, there = run("gpu", 3, options), run("cpu", 3, options | {"trainer.accelerator": "cpu"})
    one, other = (load_file(next(folder.rglob("delta.safetensors"))) for folder in (here, there))
    for name, tensor in one.items():
        assert float((tensor - other[name]).norm()) < 1e-2 * float(other[name].norm())
    pairs = zip(rows(here), rows(there), strict=True)
    gaps = [
        abs(a["after"]["nll_answer"] - b["after"]["nll_answer"])
        for row, same in pairs
        for a, b in zip(row["probes"], same["probes"], strict=True)
    ]
    assert max(gaps) < 0.05


def test_statistics_agree_with_those_of_the_cpu() -> None:
    ids = torch.randint(600, (3000,), generator=torch.Generator().manual_seed(0), device="cpu")
    sums = []
    for device in ("cpu", "cuda" if torch.cuda.is_available() else "pretended"):
        lm = tiny_lm("llama", device=device)
        sums.append(collect(lm, [1, 2], ids, 64, 512).moments[1].mean().cpu())
    assert float((sums[0] - sums[1]).norm()) < 1e-4 * float(sums[0].norm())
