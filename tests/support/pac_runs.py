"""PAC from end to end on tiny models: a module and its run, and a quick run by the command.

`kept_choices` and `quick_run` are the bodies of the fixtures `chosen` and `words`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from kedit.cli.options.parts import TRAINER_DEFAULTS
from kedit.delta.biases import BiasChange
from kedit.delta.delta import Delta
from kedit.delta.serialization import load_delta
from kedit.delta.slices import Slices
from kedit.methods import PAC
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.pac import LocalityConfig, Selection, TraceConfig, TrainConfig
from kedit.methods.pac import module as pac_module
from kedit.model.lm import LM
from kedit.request import EditRequest
from tests.support.device import ACCELERATOR
from tests.support.paths import FIXTURES
from tests.support.runs_in_memory import Given, Watch
from tests.support.small_runs import configured, option_words
from tests.support.tiny_models import tiny_lm

RECORDS = str(FIXTURES / "records.jsonl")
REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "{} plays", "Lionel Messi", "basketball for the Lakers"),
    EditRequest("3", "What is the twin city of Cologne?", None, "Paris tea"),
    EditRequest("4", "The mother tongue of {} is", "Danielle Darrieux", "English"),
    EditRequest("5", "It rains in {}, and", "Spain", "Cairo"),
]
Rows = list[dict[str, Any]]
RowsOf = Callable[[Path], Rows]


def small(kind: str = "llama") -> LM:
    return tiny_lm(kind, n_layers=2, d_model=16, d_ff=40)


def run(module: PAC, lm: LM, requests: list[EditRequest] = REQUESTS, batch_size: int = 5) -> list[EditBatch]:
    locality = Watch()
    module.use_lm(lm)
    settings = TRAINER_DEFAULTS | {"accelerator": ACCELERATOR, "logger": False, "enable_checkpointing": False}
    Trainer(**settings, callbacks=[locality]).fit(module, datamodule=Given(requests, batch_size), weights_only=True)
    return locality.batches


def dense(delta: Delta | None) -> dict[str, Tensor]:
    """Changes of weights and biases as they are added."""
    assert delta is not None
    return {path: part.dense() for path, part in delta.of_kind(Slices).items()} | {
        f"{path}.bias": bias.change for path, bias in delta.of_kind(BiasChange).items()
    }


def same(one: Delta | None, other: Delta | None) -> bool:
    """The same changes to the bit, whatever lines without a change are listed."""
    mine, theirs = dense(one), dense(other)
    return mine.keys() == theirs.keys() and all(torch.equal(value, theirs[path]) for path, value in mine.items())


TRAIN = TrainConfig(lr=0.02, passes=6, bias="none")
TRACE = TraceConfig(nodes=4, contrast_nodes=2)


def pac(**changed: Any) -> PAC:
    options = {"train": TRAIN, "trace": TRACE, "locality": LocalityConfig(0.0)}
    return configured(PAC, **(options | changed))


def kept_choices(monkeypatch: pytest.MonkeyPatch) -> list[Selection]:
    """The selections of a run, in their order."""
    found: list[Selection] = []
    choose = pac_module.choose

    def locality(*args: Any) -> Any:
        selection, scores = choose(*args)
        found.append(selection)
        return selection, scores

    monkeypatch.setattr(pac_module, "choose", locality)
    return found


ZSRE = [
    {
        "case_id": i,
        "prompt": prompt,
        "target_new": target,
        "ground_truth": "Paris",
        "paraphrase_prompts": f"Say: {prompt}",
        "locality_prompt": "nq question: which month comes after may",
        "locality_ground_truth": "June is next",
    }
    for i, (prompt, target) in enumerate(
        [
            ("What city is France ruled from?", "Rome"),
            ("Who plays football?", "LeBron James"),
            ("Where does it rain?", "in the north of Spain"),
        ]
    )
]


def quick_run(tiny_folder: Callable[..., str], tmp_path: Path) -> Callable[..., list[str]]:
    """`words(**{"edit.regime": "single"})`: a quick run of four records; later options win."""

    def command(**more: Any) -> list[str]:
        options: dict[str, Any] = {
            "model": "PAC",
            "lm.name": tiny_folder("llama", n_layers=2, d_model=16, d_ff=40, context=128),
            "model.train.lr": 0.02,
            "model.train.passes": 4,
            "model.trace.nodes": 4,
            "data": "Records",
            "data.path": RECORDS,
            "data.batch_size": 2,
            "metrics.scoring.generate": "[]",
            "results.resamples": 20,
            "run.root": tmp_path / "runs",
            "run.name": "one",
            "trainer.accelerator": ACCELERATOR,
        }
        if more.get("data") == "ZsRE":
            (tmp_path / "zsre.json").write_text(json.dumps(ZSRE))
            options |= {"data.path": tmp_path / "zsre.json"}
        return ["fit", *option_words(options | more)]

    return command


def deltas_of(folder: Path) -> list[Delta]:
    return [load_delta(path.parent)[0] for path in sorted(folder.rglob("card.json"))]
