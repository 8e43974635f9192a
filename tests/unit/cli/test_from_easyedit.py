"""`kedit from-easyedit`: every key of a file is carried over, explained or named, and the result parses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kedit.cli import main
from kedit.cli.easyedit.tables import COMMON, METHODS
from kedit.cli.easyedit.translate import method_of, translate

LLAMA = {
    "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
    "layer_module_tmp": "model.layers.{}",
    "mlp_module_tmp": "model.layers.{}.mlp",
    "attn_module_tmp": "model.layers.{}.self_attn",
    "ln_f_module": "model.norm",
    "lm_head_module": "lm_head",
}
MACHINE = {"model_name": "./models/small-llama", "device": 1, "model_parallel": False, "fp16": True}
VALUE = {
    "fact_token": "subject_last",
    "v_num_grad_steps": 12,
    "v_lr": "3e-1",
    "v_loss_layer": 21,
    "v_weight_decay": "2e-3",
    "clamp_norm_factor": 3,
    "kl_factor": 0.05,
    "mom2_dataset": "wikipedia",
    "mom2_n_samples": 5000,
    "mom2_dtype": "float32",
    "stats_dir": "./stats",
    **LLAMA,
}
ONE = VALUE | {"layers": [6], "mom2_adjustment": False, "context_template_length_params": [[4, 8], [9, 7]]}
MANY = VALUE | {
    "layers": [7, 5, 6],
    "layer_selection": "all",
    "mom2_adjustment": True,
    "mom2_update_weight": 9000,
    "batch_size": 40,
}
TRAINED = {"num_steps": 31, "batch_size": 3, "max_length": 44, "lr": "4e-4", "weight_decay": 0, "kl_factor": 0}
FILES: Mapping[str, Mapping[str, Any]] = {
    "ROME": ONE,
    "R-ROME": ONE,
    "MEMIT": MANY,
    "EMMET": MANY | {"emmet_lambda": 0.2, "update_norm_lambda": 0},
    "PMET": MANY | {"nll_loss_factor": 1, "rewrite_module_tmps": [LLAMA["rewrite_module_tmp"]]},
    "AlphaEdit": MANY | {"nullspace_threshold": "3e-2", "L2": 4, "P_loc": "./p.pt"},
    "FT": TRAINED
    | LLAMA
    | {
        "layers": [19],
        "norm_constraint": 0.002,
        "objective_optimization": "prompt_last",
        "rewrite_module_tmp": "model.layers.{}.mlp.down_proj.weight",
    },
    "LoRA": TRAINED
    | {
        "layers": [],
        "lora_type": "adalora",
        "rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.2,
        "norm_constraint": False,
        "target_modules": ["q_proj", "v_proj"],
    },
    "GRACE": {
        "inner_params": ["model.layers[21].mlp.down_proj.weight"],
        "edit_lr": 0.7,
        "n_iter": 45,
        "eps": 1.5,
        "dist_fn": "euc",
        "val_init": "warm",
        "val_train": "sgd",
        "val_reg": "None",
        "reg": "early_stop",
        "replacement": "replace_last",
        "eps_expand": "coverage",
        "num_pert": 8,
        "dropout": 0.0,
    },
    "KN": {
        "lr_scale": 1.0,
        "n_toks": 9,
        "refine": True,
        "batch_size": 2,
        "steps": 7,
        "adaptive_threshold": 0.3,
        "p": 0.45,
    },
    "IKE": {"sentence_model_name": "./models/sentences", "results_dir": "./out", "k": 9},
    "ULTRAEDIT": {
        "class_name": "AutoModelForCausalLM",
        "tokenizer_name": "./models/small-llama",
        "inner_params": [
            "model.layers.13.mlp.gate_proj",
            "model.layers.12.mlp.gate_proj",
            "model.layers.18.mlp.up_proj",
        ],
        "lr": "2e-6",
        "token": "mask",
        "batch_size": 60,
        "batch_size_once": 6,
        "half": True,
        "no_grad_layers": None,
        "silent": False,
    },
    "LocFT-BF": {
        "data_path": "./facts.json",
        "layer": 17,
        "rewrite_module": "model.layers.{}.self_attn.o_proj.weight",
        "lr": 5.0e-4,
        "batch_size": 90,
        "num_steps": 22,
    },
}
"""Small files of the forms that EasyEdit reads, with values of their own; the last one as its repository has it."""

EXPECTED: Mapping[str, Mapping[str, Any]] = {
    "ROME": {
        "class_path": "ROME",
        "layer": 6,
        "v_lr": 0.3,
        "v_num_grad_steps": 12,
        "v_weight_decay": 0.002,
        "clamp_norm_factor": 3.0,
        "kl_factor": 0.05,
        "mom2_adjustment": False,
        "contexts": {"lengths": [[4, 8], [9, 7]]},
    },
    "R-ROME": {"class_path": "RROME", "layer": 6},
    "MEMIT": {"class_path": "MEMIT", "layers": [5, 6, 7], "mom2_update_weight": 9000.0},
    "EMMET": {"class_path": "EMMET", "emmet_lambda": 0.2},
    "PMET": {"class_path": "PMET", "layers": [5, 6, 7]},
    "AlphaEdit": {"class_path": "AlphaEdit", "nullspace_threshold": 0.03, "l2": 4.0},
    "FT": {
        "class_path": "FT",
        "layers": [19],
        "steps": 31,
        "mini_batch": 3,
        "lr": 0.0004,
        "norm_constraint": 0.002,
        "loss": "prompt_last",
        "matrices": ["mlp_out"],
    },
    "LoRA": {"class_path": "LoRA", "layers": None, "kind": "adalora", "r": 12, "alpha": 16.0, "dropout": 0.2},
    "GRACE": {"class_path": "GRACE", "layer": 21, "module": "down", "lr": 0.7, "steps": 45, "eps": 1.5, "init": "warm"},
    "KN": {"class_path": "KN", "refine": True, "steps": 7, "adaptive_threshold": 0.3, "p": 0.45},
    "IKE": {"class_path": "IKE", "k": 9, "encoder": "./models/sentences"},
    "ULTRAEDIT": {
        "class_path": "UltraEdit",
        "gate_layers": [12, 13],
        "up_layers": [18],
        "down_layers": [],
        "eta": 2e-6,
        "tokens": "all",
        "chunk": 6,
    },
    "LocFT-BF": {
        "class_path": "LocFT",
        "layer": 17,
        "matrices": ["self_attn.o_proj"],
        "lr": 0.0005,
        "mini_batch": 90,
        "epochs": 22,
    },
}


def hparams_of(name: str) -> dict[str, Any]:
    """The file of a method; the one of LocFT has no name of its method in it."""
    named = {"model_name_or_path": "./models/small-llama"} if name == "LocFT-BF" else {"alg_name": name} | MACHINE
    if "half" in FILES[name]:
        del named["fp16"]
    return named | dict(FILES[name])


def written(tmp_path: Path, hparams: Mapping[str, Any]) -> str:
    path = tmp_path / "hparams.yaml"
    path.write_text(yaml.safe_dump(dict(hparams)))
    return str(path)


@pytest.mark.parametrize("name", FILES)
def test_every_method_s_file_is_a_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The written file is what `kedit fit` parses, with the values of before; each key is carried over or named."""
    from kedit.cli.commands.fit import parsed
    from kedit.cli.options.first_look import first_look

    hparams = hparams_of(name)
    out = tmp_path / "mine.yaml"
    main(["from-easyedit", written(tmp_path, hparams), "--out", str(out), "--method", name])
    assert f"kedit fit --config {out}" in capsys.readouterr().out
    text = out.read_text()
    assert max(map(len, text.splitlines())) <= 120
    first_look(["--config", str(out)])
    config = parsed(["--config", str(out)])
    assert config.lm.name == "./models/small-llama"
    model = config.model.init_args.as_dict() | {"class_path": config.model.class_path.rpartition(".")[2]}
    for option, value in EXPECTED[name].items():
        if isinstance(value, dict):
            assert {key: model[option][key] for key in value} == value
        else:
            assert model[option] == value, option
    assert "Not known" not in text
    done = translate(hparams, method_of(hparams, name))
    told = [said.key for said in (*done.differs, *done.dropped)] + [
        one.partition(":")[0] for one in done.origin.values()
    ]
    same = [option.rpartition(".")[2] for option in done.options]
    assert set(hparams) <= {*told, *same}


@pytest.mark.parametrize("name", METHODS)
def test_every_key_of_the_tables_is_in_a_file_here(name: str) -> None:
    """So that an option that kedit renames is found by the test above."""
    method = METHODS[name]
    file = next(file for known, file in FILES.items() if known.lower().replace("-", "") in (name, f"{name}bf"))
    carried = {key for key, rule in method.keys.items() if rule.to is not None}
    assert carried - set(file) - {"model_name_or_path"} == set()


def test_regimes_and_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, regime, size, limit in (("MEMIT", "single", 40, 40), ("GRACE", "sequential", None, 10)):
        main(["from-easyedit", written(tmp_path, hparams_of(name))])
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["edit"]["regime"] == regime
        assert config["data"]["init_args"].get("batch_size") == size
        assert config["data"]["init_args"]["limit"] == limit


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("ROME", {"fact_token": "last"}, "- fact_token: 'last': it edits at the subject's last token"),
        ("ROME", {"layers": [5, 6]}, "- layers: [5, 6]: not carried over: it edits one layer: set model.layer"),
        ("MEMIT", {"layer_selection": "random"}, "- layer_selection: 'random': it edits all the layers"),
        (
            "MEMIT",
            {"rewrite_module_tmp": "model.layers.{}.self_attn.o_proj"},
            "not carried over: it edits the output map",
        ),
        ("ROME", {"mom2_dtype": "float16"}, "- mom2_dtype: 'float16': not carried over: it sums in float32"),
        ("ROME", {"model_parallel": True}, "- model_parallel: true: a model is not split over GPUs"),
        ("ROME", {"use_chat_template": True}, "- use_chat_template: true: "),
        ("GRACE", {"inner_params": ["a.layers[1].x.weight"]}, "is none that it knows"),
        ("GRACE", {"dist_fn": "cos"}, "- dist_fn: 'cos': distances are Euclidean"),
        ("IKE", {"sentence_model_name": "hub/sentences"}, "not carried over: it takes a local folder"),
        ("ROME", {"model_name": None}, "- model_name: not given: set lm.name"),
        ("FT", {"objective_optimization": None}, "- objective_optimization: not given: "),
    ],
)
def test_what_differs_is_said(name: str, change: dict[str, Any], said: str, tmp_path: Path, capsys: Any) -> None:
    """Where a value has no counterpart, the file says so above all that is not needed."""
    hparams = hparams_of(name) | change
    path = written(tmp_path, {key: value for key, value in hparams.items() if value is not None})
    main(["from-easyedit", path])
    text = capsys.readouterr().out.replace("\n#     ", " ")
    different, _, rest = text.partition("# Not needed here:")
    assert said in different
    assert said not in rest


def test_unknown_keys_are_listed_and_secrets_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"frobnicate": [1, 2], "api_key": "sk-very", "judge_secret": "sk-hidden"}
    main(["from-easyedit", written(tmp_path, hparams_of("ROME") | extra)])
    text = capsys.readouterr().out
    unknown = text.partition("# Not known, and not carried over")[2]
    assert "# - frobnicate: [1, 2]" in unknown
    assert "# - judge_secret: ..." in unknown
    assert "sk-" not in text


def test_json_of_the_rome_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpt2.json"
    path.write_text(json.dumps(ONE | {"v_lr": 0.3}))
    main(["from-easyedit", str(path), "--method", "rome"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["layer"] == 6
    assert config["lm"] == {"name": "smollm2-135m"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("alg_name: MEND\n", "alg_name: 'MEND' is no method of kedit; it has ROME, R-ROME, MEMIT, "),
        ("v_lr: 0.5\n", "no hyperparameters of EasyEdit: there is no alg_name in it"),
        ("- 1\n", "no hyperparameters of EasyEdit: it is no mapping"),
        ("model: {class_path: ROME}\n", "this is a configuration of kedit already"),
        ("alg_name: ROME\nv_lr: fast\n", "v_lr: expects a number, not 'fast'"),
        ("alg_name: ROME\nlayers: 5\n", "layers: expects a list of layers, such as [5], not 5"),
        ("alg_name: ROME\nv_num_grad_steps: 2.5\n", "v_num_grad_steps: expects a whole number, not 2.5"),
        ("alg_name: ROME\nv_lr: .nan\n", "v_lr: nan is not a finite number"),
        ("alg_name: [\n", "not valid YAML at line 2, column 1"),
        (
            "alg_name: FT\nrewrite_module_tmp: mlp.down_proj\n",
            "rewrite_module_tmp: expects a path with {} for the layer",
        ),
    ],
)
def test_bad_files(content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hparams.yaml"
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        main(["from-easyedit", str(path)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"kedit: error: {path}: {message}")
    assert len(error.splitlines()) <= 2


def test_bad_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = written(tmp_path, hparams_of("ROME"))
    for words, message in (
        ([], "Which file? "),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        ([good, "--method", "ROMEO"], "method: 'ROMEO' is no method of kedit; it has ROME, "),
        ([good, "--out", good], "is there already; name another"),
        ([good, "--out", str(tmp_path / "no" / "x.yaml")], "cannot be written: No such file or directory"),
        ([good, "--outt", "x"], "outt: there is no such option"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["from-easyedit", *words])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_notes_end_like_notes() -> None:
    """They are put behind a colon, in one line."""
    rules = [*COMMON.values(), *(rule for method in METHODS.values() for rule in method.keys.values())]
    assert all(not rule.note.endswith(".") and "\n" not in rule.note for rule in rules)
    assert all(rule.to is not None or rule.note for rule in rules)
