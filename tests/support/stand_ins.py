"""What stands in for what a reader of the documentation has: models, data sets, statistics, results, a cluster."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import PreTrainedModel

from kedit.cli.commands import slurm
from kedit.cli.commands.sweep import open_sweep
from kedit.covariance import StatsConfig
from kedit.model import pretrained
from kedit.results.costs import COSTS, cost_lines
from tests.support.code_blocks import SHELL, Block
from tests.support.comparison_cases import random_row, write_run
from tests.support.config_files import CONFIGS, leaves
from tests.support.paths import FIXTURES, ROOT

TREE = ("configs", "slurm", "benchmarks", "constraints.txt")
MODELS = ("path/to/model", "path/to/llama-7b", "path/to/quantised")
DATA: Mapping[str, str] = MappingProxyType(
    {
        "counterfact.json": "counterfact_official.json",
        "data/counterfact.json": "counterfact_official.json",
        "data/rep_counterfact_valid.json": "robust.json",
        "data/rep_zsre_test.json": "robust.json",
        "data/zsre_edit.json": "zsre.json",
        "rep_counterfact_test.json": "robust.json",
        "zsre_mend_eval.json": "zsre.json",
    }
)
"""Data sets that pages name -> the fixture that has their form."""
EASYEDIT = "hparams/ROME/llama-7b.yaml"
"""A hyperparameter file of EasyEdit's form, with few of its keys."""


def stand_in(folder: Path, model: str, patch: pytest.MonkeyPatch) -> None:
    """Makes a folder with what the source tree and a reader have, and goes there.

    Args:
        folder: It.
        model: A tiny model's folder, which is what every alias and path of a model leads to.
        patch: Undone when the test ends.
    """
    folder.mkdir()
    for name in TREE:
        (folder / name).symlink_to(ROOT / name)
    for name in MODELS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(model)
    for name, fixture in DATA.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(FIXTURES / fixture, folder / name)
    keys = {"alg_name": "ROME", "model_name": "path/to/llama-7b", "layers": [5], "v_lr": 0.5, "v_num_grad_steps": 5}
    (folder / EASYEDIT).parent.mkdir(parents=True)
    (folder / EASYEDIT).write_text(yaml.safe_dump(keys))
    check = StatsConfig.__post_init__

    def few_tokens(self: StatsConfig) -> None:
        check(self)
        self.tokens = min(self.tokens, 400)

    patch.setattr(StatsConfig, "__post_init__", few_tokens)
    patch.setattr(pretrained, "fetch", lambda alias: Path(model))
    patch.setattr(PreTrainedModel, "dequantize", lambda self: self)  # the stand-in is not quantised
    patch.setattr(slurm, "check_options", lambda tasks: None)  # takes a second a task
    patch.setattr(slurm, "_stats", lambda tasks: [])
    patch.setenv("COLUMNS", "120")
    patch.chdir(folder)


def deepest_layer(page: list[Block]) -> int:
    """The highest layer that a configuration of the page's commands names."""
    text = "".join(block.text for block in page if block.language in SHELL)
    files = [file for file in CONFIGS if re.search(rf"\b{file.stem}\b", text)]
    models = [yaml.safe_load(file.read_text())["model"] for file in files]
    named = [value for model in models for path, value in leaves(model) if re.search(r"layers?$", path[-1])]
    return max((n for value in named for n in (value if isinstance(value, list) else [value])), default=0)


def make_results(names: list[str]) -> None:
    """Made-up results of the tasks of a sweep, or of the runs, that a command names."""
    random = np.random.default_rng(0)

    def rows(editor: bool) -> list[dict[str, Any]]:
        moments = ("edit", "editor") if editor else ("edit",)
        return [random_row(case, random, at) for at in moments for case in range(4)]

    for name in names:
        if name.endswith(".yaml"):
            folder = open_sweep(name, None)
            folder.write()
            for numbered in folder.tasks:
                if not numbered.folder.exists():
                    wrapped = Path(numbered.task.config).name.startswith(("rep_", "steam_"))
                    write_run(numbered.folder, rows(wrapped), seed=int(str(numbered.task.options.get("edit.seed", 0))))
                    numbered.save({"state": "done", "seconds": 1.0})
        elif name.startswith("runs/") and not Path(name).exists():
            run = write_run(Path(name), rows("rep" in name))
            lines = [line for case in range(4) for line in cost_lines([str(case)], case, 2.0, 1.0, [1000])]
            (run / COSTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
