"""The configs of PAC say what they are: defaults, controls, the released run, and what is chosen for a data set."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kedit.methods import PAC
from kedit.methods.pac import ContrastConfig, LocalityConfig, TraceConfig, TrainConfig, parity_train
from tests.support.config_files import CONTROLS, DATA_OF_PAC, PAC_CONFIGS, PAC_SWEEP, ROOT, arms, whole


def test_pac_shows_its_defaults() -> None:
    config = whole(ROOT / "configs" / "pac_smollm2.yaml")
    args = config["model"]["init_args"]
    assert (config["edit"]["regime"], PAC.usual_regime) == (None, "batch")
    assert (args["scope"], args["parity"]) == ("batch", False)
    assert args["trace"] == asdict(TraceConfig(nodes=200, memory=1.34))  # chosen for it; the model is small
    assert args["train"] == asdict(TrainConfig())
    assert args["contrast"] == asdict(ContrastConfig())
    assert args["locality"] == asdict(LocalityConfig())


@pytest.mark.parametrize("data", DATA_OF_PAC)
def test_only_the_learning_rate_of_pac_is_chosen_for_a_data_set(data: str) -> None:
    files = (ROOT / "configs" / f"pac{infix}_smollm2.yaml" for infix in ("", f"_{data}"))
    plain, own = (whole(file)["model"]["init_args"] for file in files)
    own["train"]["lr"] = plain["train"]["lr"]
    assert own == plain


RELEASED = [f for f in PAC_CONFIGS if "parity" in f.stem or "smollm2" not in f.stem]


@pytest.mark.parametrize("file", RELEASED, ids=lambda file: file.stem)
def test_the_released_run_of_pac_is_shown_as_it_is_in_effect(file: Path) -> None:
    """All that the released code fixes; the defaults of the classes may become others."""
    config = whole(file)
    args, data = config["model"]["init_args"], config["data"]["init_args"]
    shorter = file.stem == "pac_zsre_llama3"  # its run script makes a pass less than parity's
    assert args["parity"]
    assert args["train"] == asdict(replace(parity_train(), passes=11) if shorter else parity_train())
    assert args["contrast"] == {
        "weight": 0.1,
        "lr": None,
        "original": "forced",
        "theta": "updated",
        "merge": True,
    }
    assert args["locality"]["weight"] == 0
    released = {
        "score": "zscore",
        "nodes": 15,
        "contrast_nodes": 1,
        "mode": "per_matrix",
        "node_source": "traced",
        "coverage": None,
    }
    assert args["trace"].items() >= (released | {"tie_kv": False, "include_gate": False}).items()
    assert (config["edit"]["regime"], PAC.usual_regime, args["scope"]) == (None, "batch", "batch")
    assert data["batch_size"] == data["limit"]  # the edit batch is the edit set


@pytest.mark.parametrize("arm", CONTROLS)
def test_a_control_of_pac_differs_by_what_its_name_says(arm: str) -> None:
    (task,) = (task for task in arms() if task.labels["arm"] == arm)
    differ = {name.removeprefix("model.init_args."): value for name, value in task.options.items()}
    lr = whole(ROOT / "configs" / "pac_smollm2.yaml")["model"]["init_args"]["train"]["lr"]
    assert differ == pytest.approx({name: 1.41 * lr if name == "train.lr" else v for name, v in CONTROLS[arm].items()})
    header = PAC_SWEEP.read_text().partition("\n\n")[0]
    assert re.search(rf"^# {arm} +\w", header, re.MULTILINE)
