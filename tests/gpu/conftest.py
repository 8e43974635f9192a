"""What the tests that need a GPU share: a run by the command on it, with facts of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.cli import main
from tests.support.device import ACCELERATOR
from tests.support.small_runs import city_facts, option_words

SHAPE = {"n_layers": 6, "d_model": 256, "d_ff": 640, "n_heads": 8}
COMMON = {
    "data": "Records",
    "metrics.scoring.generate": "[rewrite]",
    "results.resamples": 20,
    "trainer.accelerator": "gpu" if torch.cuda.is_available() else ACCELERATOR,
    "trainer.devices": 1,
}

Run = Callable[..., Path]


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> Callable[..., list[str]]:
    """`words("name", 4, **options)`: the command of a run over four facts."""

    def command(name: str, n: int, options: dict[str, Any]) -> list[str]:
        facts = {"lm.name": tiny_folder("llama", **SHAPE), "data.path": city_facts(tmp_path / f"{n}.jsonl", n)}
        place = {"run.root": tmp_path / "runs", "run.name": name}
        return ["fit", *option_words(options | facts | COMMON | place | options)]  # its method first

    return command


@pytest.fixture
def run(words: Callable[..., list[str]], tmp_path: Path) -> Run:
    """Runs the command of `words`; returns the run's folder."""

    def done(name: str, n: int, options: dict[str, Any]) -> Path:
        main(words(name, n, options))
        return tmp_path / "runs" / name

    return done


def rows(folder: Path) -> list[dict[str, Any]]:
    """Result rows of a run."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
