"""Real runs, really killed (SIGKILL at a random edit), and resumed: same bits, no line lost or doubled."""

from __future__ import annotations

import json
import os
import random
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

from kedit.cli import main
from tests.support.device import ACCELERATOR
from tests.support.small_runs import option_words

pytestmark = pytest.mark.slow

N = 60
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`N` records, each with a neighbour, of various lengths."""
    words = ["Rome", "Tokyo", "Dutch tea", "Seattle", "English", "the north of Spain"]
    path = tmp_path_factory.mktemp("data") / "facts.jsonl"
    rows = [
        {
            "case_id": f"fact-{i}",
            "prompt": ["The capital of {} is", "{} is located in", "The mother tongue of {} is"][i % 3],
            "subject": f"{words[i % 5]} {i}",
            "target_new": words[(i + 1) % 6],
            "target_true": words[(i + 2) % 6],
            "neighbors": ["The Space Needle is located in"],
        }
        for i in range(N)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def words(facts: Path, tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    """The command of all runs here."""
    options = {
        "model": "ROME",
        "lm.name": tiny_folder("llama", n_layers=3, d_model=16, d_ff=40),
        "model.layer": 1,
        "model.mom2_adjustment": "false",
        "model.v_num_grad_steps": 4,
        "model.contexts.lengths": "[[3,1]]",
        "edit.lanes": 4,
        "data": "Records",
        "data.path": facts,
        "metrics.measure": "both",
        "metrics.scoring.generate": "[]",
        "results.resamples": 50,
        "run.root": tmp_path,
        "trainer.accelerator": ACCELERATOR,
    }
    return ["fit", *option_words(options)]


def lines(path: Path) -> int:
    """Complete lines of a results file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at(words: list[str], folder: Path, count: int, cpu_limit: float = 120.0) -> None:
    """Start the command, and SIGKILL it once `count` lines of results are written."""
    command = [sys.executable, "-m", "kedit", *words]
    with subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        end = time.monotonic() + cpu_limit
        while lines(folder / "results.jsonl") < count and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error.decode()[-2000:]
    assert not (folder / "summary.json").exists(), "it was over before it could be killed"


def assert_same_tensors(one: Path, other: Path) -> None:
    """Two delta files hold the same bits."""
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    assert a
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_same_run(one: Path, other: Path, rows_of: Callable[[Path], Rows]) -> None:
    """Same lines in the same order, same deltas, same summary."""
    assert rows_of(one) == rows_of(other)
    deltas = sorted(path.relative_to(one) for path in one.rglob("delta.safetensors"))
    assert deltas
    assert deltas == sorted(path.relative_to(other) for path in other.rglob("delta.safetensors"))
    for path in deltas:
        assert_same_tensors(one / path, other / path)
    results = [json.loads((folder / "summary.json").read_text())["results"] for folder in (one, other)]
    assert results[0] == results[1]


def test_sequential_run_killed_again_and_again(
    words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows]
) -> None:
    words += ["--edit.regime", "sequential", "--checkpoint.every", "4"]
    main([*words, "--run.name", "whole"])
    chance = random.Random(4)
    run, resume = tmp_path / "killed", [*words, "--run.name", "killed", "--run.resume", "true"]

    kill_at(resume, run, 2)  # before the first checkpoint
    assert not list(run.rglob("*.ckpt"))
    with (run / "results.jsonl").open("a") as file:
        file.write('{"case_id": "fact-9", "batch": 9, "when": "edi')  # a kill in the middle of a write
    first = chance.randrange(6, 27)
    kill_at(resume, run, first)
    assert first <= lines(run / "results.jsonl") < N
    with (run / "results.jsonl").open("a") as file:
        file.write('{"case_')
    kill_at(resume, run, chance.randrange(30, 50))
    main(resume)

    rows = rows_of(run)
    for measured_at in ("edit", "end"):
        assert [row["case_id"] for row in rows if row["measured_at"] == measured_at] == [f"fact-{i}" for i in range(N)]
    assert_same_run(tmp_path / "whole", run, rows_of)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def test_single_run_killed(words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows]) -> None:
    main([*words, "--run.name", "whole"])
    run, resume = tmp_path / "killed", [*words, "--run.name", "killed", "--run.resume", "true"]
    kill_at(resume, run, random.Random(5).randrange(5, 40))
    main(resume)
    assert sorted(row["case_id"] for row in rows_of(run)) == sorted(f"fact-{i}" for i in range(N))
    assert_same_run(tmp_path / "whole", run, rows_of)
