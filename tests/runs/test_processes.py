"""Runs shared by several processes end as those of one do: the same lines, the same deltas, the same summary."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.cli import main
from kedit.covariance import store
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors
from kedit.delta.pathways import Pathways
from kedit.delta.serialization import load_delta
from kedit.delta.slices import Slices
from tests.support.process_cases import CASES, STATS, case_words

pytestmark = pytest.mark.slow

Rows = list[dict[str, Any]]
OF_FOUR = ("ROME-single", "EMMET-sequential", "REP-sequential-MEMIT", "PAC-single", "STEAM-batch-MEMIT")
RUNS = [(2, name) for name in CASES] + [(4, name) for name in OF_FOUR]


def together(count: int, jobs: Path, cache: Path) -> None:
    """Run the jobs of a file in `count` processes, which do them one after the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "KEDIT_CACHE": str(cache), "MASTER_ADDR": "127.0.0.1"}
    env |= {"MASTER_PORT": str(port), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    env |= {"TORCHELASTIC_RUN_ID": "kedit", "GROUP_RANK": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.process_cases", str(jobs)],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate(timeout=900)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(said)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., str]) -> Path:
    """The runs, by one, two and four processes, in ROOT/COUNT/NAME; all use the statistics that the first made.

    But for one run, each with a cache of its own, ROOT/COUNT/cache.
    """
    root = tmp_path_factory.mktemp("processes")
    model = tiny_folder("llama", n_layers=4)
    for count, names in ((1, CASES), (2, CASES), (4, OF_FOUR)):
        home = root / str(count)
        jobs: list[dict[str, Any]] = [{"words": case_words(name, model, home, count)} for name in names]
        if count < 4:
            jobs.append({"words": case_words(STATS, model, home, count), "cache": str(home / "cache")})
        file = root / f"jobs{count}.json"
        file.write_text(json.dumps(jobs))
        together(count, file, root / "cache")
    return root


@pytest.mark.parametrize(("count", "name"), RUNS)
def test_ends_as_one_process_does(count: int, name: str, folders: Path, rows_of: Callable[[Path], Rows]) -> None:
    one, some = (folders / str(n) / name for n in (1, count))
    rows = rows_of(one)
    assert rows_of(some) == rows
    assert all(row["edit"]["steps"] > 0 for row in rows)
    files = written(one)
    assert written(some) == files
    folders_of_deltas = [path.parent for path in files if path.name == "delta.safetensors"]
    assert folders_of_deltas
    for path in folders_of_deltas:
        (delta, card), (other, other_card) = (load_delta(run / path) for run in (one, some))
        assert [r["case_id"] for r in card["requests"]] == [r["case_id"] for r in other_card["requests"]]
        torch.testing.assert_close(tensors(other), tensors(delta), atol=1e-6, rtol=1e-6)
    for path in files:
        if path.suffix == ".csv":
            cells = [[number(cell) for line in csv.reader((run / path).open()) for cell in line] for run in (one, some)]
            for mine, theirs in zip(*cells, strict=True):  # means over traces: sums in another order
                assert theirs == (pytest.approx(mine, rel=1e-12) if isinstance(mine, float) else mine)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, some)]
    assert summaries[1]["timing"].pop("processes") == count
    assert summaries[1]["timing"]["edits"] == summaries[0]["timing"]["edits"] == 6
    for key in ("protocol", "method", "data", "results", "failed"):
        assert summaries[1][key] == summaries[0][key]


def number(cell: str) -> float | str:
    """A cell of a CSV file."""
    try:
        return float(cell)
    except ValueError:
        return cell


def written(folder: Path) -> list[Path]:
    """The files of a run, but for its loggers'."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if "logs" not in path.parts)


def tensors(delta: Any) -> dict[str, torch.Tensor]:
    """All that a delta holds."""
    found = {f"{path} left": factors.left for path, factors in delta.of_kind(Factors).items()}
    found |= {f"{path} right": factors.right for path, factors in delta.of_kind(Factors).items()}
    found |= {f"{path} values": own.values for path, own in delta.of_kind(Slices).items()}
    found |= {f"{path} index": own.index for path, own in delta.of_kind(Slices).items()}
    found |= {f"{path} matrix": own.matrix for path, own in delta.of_kind(Dense).items()}
    for path, pathways in delta.of_kind(Pathways).items():
        found |= {f"{path} {i} {key}": v for i, own in enumerate(pathways.adapters) for key, v in own.tensors().items()}
    return found


def test_statistics_are_shared(folders: Path, rows_of: Callable[[Path], Rows]) -> None:
    """Covariances of two processes are those of one but for the order of the sums, and so are edits made with them."""
    caches = [folders / str(count) / "cache" for count in (1, 2)]
    files = [sorted(cache.rglob("*mlp*.safetensors")) for cache in caches]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert files[0]
    for one, other in zip(*files, strict=True):
        (mine, card), (theirs, other_card) = store.read(one), store.read(other)
        for name, tensor in mine.items():
            assert float((theirs[name] - tensor).abs().max()) <= 1e-6 * float(tensor.abs().max())
        assert [mark["tokens"] for mark in card["convergence"]][-1] == other_card["convergence"][-1]["tokens"]
    deltas = [load_delta(folders / str(count) / STATS / "delta")[0] for count in (1, 2)]
    for path, factors in deltas[0].of_kind(Factors).items():
        change, other = factors.dense(), deltas[1].of_kind(Factors)[path].dense()
        assert 0 < float((other - change).abs().max()) <= 1e-5 * float(change.abs().max())


def test_sigterm_stops_all_and_the_run_goes_on(
    folders: Path, tiny_folder: Callable[..., str], tmp_path: Path, rows_of: Callable[[Path], Rows]
) -> None:
    """As a user starts it: one command, which starts the other process itself."""
    more = ["--model.v_num_grad_steps", "80", "--model.stop_loss", "0", "--run.resume", "true"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "KEDIT_CACHE": str(folders / "cache")}
    model = tiny_folder("llama", n_layers=4)
    whole, two = ([*case_words("RROME-sequential", model, tmp_path / str(n), n), *more] for n in (1, 2))
    command = [sys.executable, "-m", "kedit", *two]
    results = tmp_path / "2" / "RROME-sequential" / "results.jsonl"
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 300
    while not (results.exists() and results.read_bytes().count(b"\n") > 0):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143, said
    assert said.splitlines()[-1] == "To go on: the same command with --run.resume true"
    assert "Traceback" not in said
    done = len(rows_of(results.parent))
    assert 0 < done < 6
    subprocess.run(command, env=env, capture_output=True, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEDIT_CACHE", str(folders / "cache"))
        main(whole)
    assert rows_of(results.parent) == rows_of(tmp_path / "1" / "RROME-sequential")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.layers", "[99]"], "kedit: error: model.layers: there is no layer 99; this model has layers 0 to 3"),
        (["--trainer.strategy", "ddp_spawn"], "kedit: error: trainer.strategy: ddp_spawn splits models or gradients"),
    ],
)
def test_errors_are_said_once(words: list[str], message: str, tiny_folder: Callable[..., str], tmp_path: Path) -> None:
    command = case_words("MEMIT-batch", tiny_folder("llama", n_layers=4), tmp_path, 2)
    done = subprocess.run([sys.executable, "-m", "kedit", *command, *words], capture_output=True, text=True)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert len(errors) == 1
    assert errors[0].startswith(message)
    assert "Traceback" not in done.stderr


def test_a_process_leaves_its_group_before_python_ends() -> None:
    """Else one of gloo's threads may still be there when Python goes away, and end the process with SIGABRT."""
    program = """
import atexit
from torch import distributed

atexit.register(lambda: print("still connected" if distributed.is_initialized() else "left"))  # the last to be called

from lightning import Trainer
from kedit.runtime.strategy import ShardedEdits

for _ in range(2):
    strategy = ShardedEdits()
    Trainer(accelerator="cpu", devices=1, strategy=strategy, logger=False, enable_checkpointing=False)
    strategy.setup_environment()
    print("connected" if distributed.is_initialized() else "alone")
"""
    words = [sys.executable, "-c", program]
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    answer = subprocess.run(words, env=env, capture_output=True, text=True, check=True, timeout=120)
    assert answer.stdout.split("\n")[:-1] == ["connected", "connected", "left"]
