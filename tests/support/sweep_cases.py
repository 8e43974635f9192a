"""A sweep of tiny real runs, for the tests of sweeps, their tables and Slurm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.support.device import ACCELERATOR
from tests.support.paths import FIXTURES

RECORDS = str(FIXTURES / "records.jsonl")


def config(model: str, regime: str = "single", **init_args: Any) -> dict[str, Any]:
    """A configuration of a quick run on a tiny model."""
    args = {
        "layer": 1,
        "mom2_adjustment": False,
        "v_num_grad_steps": 3,
        "contexts": {"lengths": [[3, 1]]},
    }
    return {
        "lm": {"name": model},
        "edit": {"regime": regime},
        "model": {"class_path": "ROME", "init_args": args | init_args},
        "data": {"class_path": "Records", "init_args": {"path": RECORDS}},
        "metrics": {"scoring": {"generate": []}},
        "results": {"resamples": 50},
        "trainer": {"accelerator": ACCELERATOR},
    }


def write(path: Path, content: Any) -> Path:
    """A YAML file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def sweep_file(folder: Path, model: str, **changes: Any) -> Path:
    """A sweep of two tasks: one configuration, two seeds. Files are named by their paths below `folder`."""
    rome = write(folder / "configs" / "rome.yaml", config(model))
    content = {"configs": [str(rome)], "grid": {"edit.seed": [0, 1]}, "options": {"data.init_args.limit": 2}}
    return write(folder / "tiny.yaml", content | changes)
