"""docs/your_method.md does what it says: its own blocks are written to files and run, as a reader would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.device import ACCELERATOR
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "your_method.md"
NAMED = {"python": ["my_method.py", "test_my_method.py"], "yaml": ["my_method.yaml"]}
MOST = 60  # lines of the method's file


def blocks() -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block of the page."""
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield found[1], found[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reader's folder with the page's files in it."""
    left = {language: list(names) for language, names in NAMED.items()}
    for language, text in blocks():
        if language in left:
            (tmp_path / left[language].pop(0)).write_text(text, encoding="utf-8")
    assert not any(left.values()), "the page lacks a block"
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
    (commands,) = [text for language, text in blocks() if language == "bash"]
    assert set(re.findall(r"--config (\S+)", commands)) == {"my_method.yaml"}
    class_path = yaml.safe_load((folder / "my_method.yaml").read_text())["model"]["class_path"]
    assert set(re.findall(r"--model.help (\S+)", commands)) == {class_path}


def test_the_page_s_test_passes(folder: Path) -> None:
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_method.py"], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


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
