"""`kedit.edit` on the real SmolLM2: the shipped settings, the same bits as `kedit fit`, the model left as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import kedit
from kedit.cli import main
from kedit.delta.factors import Factors
from kedit.runtime.shipped import config_path
from tests.support.device import ACCELERATOR, PLACE

pytestmark = pytest.mark.model

FACT: dict[str, Any] = {"prompt": "The capital of {} is", "subject": "France", "target": "Lyon"}
QUICK: dict[str, Any] = {"mom2_adjustment": False, "contexts": {"lengths": [[5, 2]]}}
"""No statistics, and 3 contexts instead of 11."""


def parts(delta: kedit.Delta) -> list[torch.Tensor]:
    return [tensor for change in delta.of_kind(Factors).values() for tensor in change.numbers()]


def test_python_the_command_and_fit_make_the_same_delta(tmp_path: Path) -> None:
    lm = kedit.load_lm(kedit.LMConfig("smollm2-135m"))
    weights = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    edit = kedit.edit(lm, **FACT, options=QUICK, device=PLACE)
    assert all(torch.equal(weights[name], tensor) for name, tensor in lm.model.state_dict().items())
    assert edit.card["settings"]["config"] == "rome_smollm2"
    assert edit.before[0].answer == "Paris"
    assert edit.after[0].says_new
    assert edit.after[0].p_new is not None
    assert edit.after[0].p_new > 0.9

    option = ["--set", "mom2_adjustment=false", "--set", "contexts.lengths=[[5, 2]]", "--device", PLACE]
    option += ["--save", str(tmp_path / "kept")]
    words = [FACT["prompt"], "--subject", FACT["subject"], "--target", FACT["target"]]
    main(["edit", "smollm2-135m", *words, *option, "--paraphrases", "0", "--neighbours", "0"])
    of_command, _ = kedit.load_delta(tmp_path / "kept", lm)

    (tmp_path / "one.jsonl").write_text(json.dumps({**FACT, "target_new": FACT["target"]}) + "\n")
    data = ["--data", "Records", "--data.path", str(tmp_path / "one.jsonl"), "--model.mom2_adjustment", "false"]
    data += ["--model.contexts.lengths", "[[5, 2]]"]
    run = ["--run.root", str(tmp_path), "--run.name", "fit", "--trainer.accelerator", ACCELERATOR]
    main(["fit", "--config", str(config_path("rome_smollm2")), *data, *run, "--metrics.scoring.generate", "[]"])
    of_fit, _ = kedit.load_delta(tmp_path / "fit" / "deltas" / "1", lm)

    assert parts(edit.delta)
    for other in (of_command, of_fit):
        assert all(torch.equal(a, b) for a, b in zip(parts(edit.delta), parts(other), strict=True))
    assert kedit.ask(lm, "The capital of France is", deltas=tmp_path / "kept", max_new_tokens=1) == " Lyon"
    assert kedit.ask(lm, "The capital of France is", max_new_tokens=1) == " Paris"
