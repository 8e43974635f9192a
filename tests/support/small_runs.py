"""A quick `kedit fit`: made-up facts about cities, a tiny Llama, the least of everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from kedit.methods.base.edit_config import EditConfig, Regime
from kedit.model.lm import LMConfig
from tests.support.device import ACCELERATOR

CITIES = ("Rome", "Tokyo", "Seattle", "Madrid")
FEW_STEPS: dict[str, Any] = {"model.v_num_grad_steps": 3, "model.contexts.lengths": "[[3,1]]"}
QUICK_ROME = {"model": "ROME", "model.layer": 1, "model.mom2_adjustment": "false", **FEW_STEPS}
QUICK_MEMIT = {"model": "MEMIT", "model.layers": "[0,1]", "model.stats.tokens": 400, **FEW_STEPS}


def city_facts(path: Path, n: int) -> Path:
    """Writes `n` records with paraphrases and neighbours, whose case ids are fact-0, fact-1 ..."""
    rows = [
        {
            "case_id": f"fact-{i}",
            "prompt": ["The capital of {} is", "{} is located in"][i % 2],
            "subject": f"{CITIES[i % 4]} {i}",
            "target_new": CITIES[(i + 1) % 4],
            "target_true": CITIES[(i + 2) % 4],
            "paraphrases": [f"I think that {CITIES[i % 4]} {i} is in"],
            "neighbors": ["The Space Needle is located in"],
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sequential_run(tiny_folder: Callable[..., str], data: Path | str, options: dict[str, Any]) -> list[str]:
    """The words of a sequential run over `data`, with the method's and the test's own options."""
    common = {
        "lm.name": tiny_folder("llama", n_layers=3, d_model=16, d_ff=40),
        "edit.regime": "sequential",
        "data": "Records",
        "data.path": data,
        "metrics.scoring.generate": "[]",
        "results.resamples": 50,
        "trainer.accelerator": ACCELERATOR,
    }
    return ["fit", *option_words(options | common | options)]  # its method first: what follows belongs to it


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options and their values, as words of a command."""
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def configured(
    method: Callable[..., Any],
    *of: Any,
    lm: LMConfig | None = None,
    regime: Regime | None = None,
    lanes: int = 0,
    seed: int = 0,
    **options: Any,
) -> Any:
    """A method with its own options, and what is edited how."""
    return method(*of, **options).configure(lm, EditConfig(regime, lanes, seed))


def refused_with_one_error(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and one line of an error, whatever a run has told before."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert message in errors[0]
