"""docs/your_method.md: its method is short, and runs as a reader runs it, in a process of its own.

tests/runs/test_code_blocks.py runs its test and its other commands.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.code_blocks import blocks_of
from tests.support.device import ACCELERATOR
from tests.support.paths import ROOT

BLOCKS = blocks_of(ROOT / "docs" / "your_method.md")
MOST = 60  # lines of the method's file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reader's folder with the page's files in it."""
    titled = {block.title: block.text for block in BLOCKS if block.title is not None}
    assert titled.keys() == {"my_method.py", "my_method.yaml", "test_my_method.py"}
    for name, text in titled.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A Python command in the reader's folder, which is on the path as `PYTHONPATH=.` puts it there."""
    env = os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=300, check=False, env=env, cwd=folder
    )


def test_the_method_is_short(folder: Path) -> None:
    assert len((folder / "my_method.py").read_text().splitlines()) < MOST


def test_the_commands_are_of_the_page_s_config(folder: Path) -> None:
    (commands,) = [block.text for block in BLOCKS if block.language == "bash"]
    assert set(re.findall(r"--config (\S+)", commands)) == {"my_method.yaml"}
    class_path = yaml.safe_load((folder / "my_method.yaml").read_text())["model"]["class_path"]
    assert set(re.findall(r"--model.help (\S+)", commands)) == {class_path}


def test_the_method_runs_from_its_config(
    folder: Path, tiny_folder: Callable[..., str], rows_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    small = {
        "lm.name": tiny_folder("llama", n_layers=6),
        "model.stats.tokens": 400,
        "data.known": "false",
        "data.limit": 2,
        "data.max_probes": 1,
        "results.resamples": 50,
        "run.name": "mine",
        "trainer.accelerator": ACCELERATOR,
        "trainer.fast_dev_run": "true",
    }
    words = [f"--{name}={value}" for name, value in small.items()]
    done = run(["-m", "kedit", "fit", "--config", "my_method.yaml", *words], folder)
    assert done.returncode == 0, done.stderr
    (made,) = (folder / "runs").iterdir()
    assert {row["status"] for row in rows_of(made)} == {"edited"}
    assert json.loads((made / "run.json").read_text())["method"]["method"] == "DiagonalEdit"
    assert len(list(made.glob("deltas/*/delta.safetensors"))) == 2
