"""The configs of PAC say what they are: defaults, controls, the released run, and what is chosen for a data set."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from kedit.methods.pac import ContrastConfig, LocalityConfig, TraceConfig, TrainConfig, parity_train
from tests.support.config_files import CONTROLS, DATA_OF_PAC, PAC_CONFIGS, ROOT, leaves


def test_pac_shows_its_defaults() -> None:
    config = yaml.safe_load((ROOT / "configs" / "pac_smollm2.yaml").read_text())
    args = config["model"]["init_args"]
    assert (config["edit"]["regime"], args["scope"], args["parity"]) == ("batch", "batch", False)
    assert args["trace"] == asdict(TraceConfig(nodes=200, memory=1.34))  # chosen for it; the model is small
    assert args["train"] == asdict(TrainConfig())
    assert args["contrast"] == asdict(ContrastConfig())
    assert args["locality"] == asdict(LocalityConfig())


@pytest.mark.parametrize("data", DATA_OF_PAC)
def test_only_the_learning_rate_of_pac_is_chosen_for_a_data_set(data: str) -> None:
    files = (ROOT / "configs" / f"pac{infix}_smollm2.yaml" for infix in ("", f"_{data}"))
    plain, own = (yaml.safe_load(file.read_text())["model"]["init_args"] for file in files)
    own["train"]["lr"] = plain["train"]["lr"]
    assert own == plain


RELEASED = [f for f in PAC_CONFIGS if "parity" in f.stem or "smollm2" not in f.stem]


@pytest.mark.parametrize("file", RELEASED, ids=lambda file: file.stem)
def test_the_released_run_of_pac_is_shown_as_it_is_in_effect(file: Path) -> None:
    """All that the released code fixes; the defaults of the classes may become others."""
    config = yaml.safe_load(file.read_text())
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
    assert (config["edit"]["regime"], args["scope"]) == ("batch", "batch")
    assert data["batch_size"] == data["limit"]  # the edit batch is the edit set


@pytest.mark.parametrize("arm", CONTROLS)
def test_a_control_of_pac_differs_by_what_its_name_says(arm: str) -> None:
    file = ROOT / "configs" / f"pac{arm}_smollm2.yaml"
    text = file.read_text()
    own = dict(leaves(yaml.safe_load(text)))
    pac = dict(leaves(yaml.safe_load((ROOT / "configs" / "pac_smollm2.yaml").read_text())))
    assert own.keys() == pac.keys()
    differ = {".".join(path[2:]): value for path, value in own.items() if value != pac[path]}
    lr = pac["model", "init_args", "train", "lr"]
    assert differ == pytest.approx({name: 1.41 * lr if name == "train.lr" else v for name, v in CONTROLS[arm].items()})
    header = " ".join(line.removeprefix("# ") for line in text.partition("\n\n")[0].splitlines())
    assert all(name in header for name in differ)
