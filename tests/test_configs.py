"""Every file in configs/ runs: one edit batch on a tiny model of its architecture, measured and saved."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kedit.cli import main
from kedit.defaults import EMMET_TABLE, MEMIT_TABLE, TABLE
from kedit.deltafile import load_delta
from kedit.lm import LMConfig, load_lm

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

# The model in a config's name (METHOD_MODEL.yaml): architecture and tokenizer of its tiny stand-in.
KINDS: dict[str, tuple[str, str]] = {
    "smollm2": ("llama", "bpe"),
    "gpt2_xl": ("gpt2", "bpe"),
    "gptj": ("gptj", "bpe"),
    "llama2": ("llama", "sentencepiece"),
    "llama3": ("llama", "bpe_bos"),
    "mistral": ("mistral", "sentencepiece"),
    "qwen25": ("qwen2", "bpe"),
}
SHAPES = {
    "smollm2": ("llama", 30, 576),
    "gpt2_xl": ("gpt2", 48, 1600),
    "gptj": ("gptj", 28, 4096),
    "llama2": ("llama", 32, 4096),
    "llama3": ("llama", 32, 4096),
    "mistral": ("mistral", 32, 4096),
    "qwen25": ("qwen2", 28, 3584),
}  # of the models themselves, as kedit.defaults has them
WIDTHS = {
    "smollm2": 1536,
    "gpt2_xl": 6400,
    "gptj": 16384,
    "llama2": 11008,
    "llama3": 14336,
    "mistral": 14336,
    "qwen25": 18944,
}  # of their keys
FILES = {
    "CounterFact": "counterfact_official.json",
    "Records": "records.jsonl",
    "RobustQueries": "robust.json",
}
SMALL = {"contexts": {"lengths": [[3, 2]]}, "stats": {"tokens": 400}}
OWN = ("model", "data", "metrics", "results", "run", "checkpoint", "progress")

Tree = dict[str, Any]


def leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every option of a configuration with its value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def groups(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tree]]:
    """Every group of options of a configuration."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield (*path, key), value
            yield from groups(value, (*path, key))


def overrides(config: Tree, folder: str, root: Path) -> list[str]:
    """What makes a run of a configuration small: wherever in it the options stand."""
    data = config["data"]["class_path"].rpartition(".")[2]
    options = {"run.root": str(root), "trainer.accelerator": "cpu", "trainer.fast_dev_run": "true"}
    options |= {"data.init_args.known": "false", "data.init_args.limit": "2"}
    if data in FILES:
        options["data.init_args.path"] = str(FIXTURES / FILES[data])
    for path, _ in groups(config["model"], ("model",)):
        name = ".".join(path)
        options |= {f"{name}.{key}": json.dumps(value) for key, value in SMALL.get(path[-1], {}).items()}
        if path[-1] == "lm":
            options[f"{name}.name"] = folder
    return [f"--{name}={value}" for name, value in options.items()]


def deepest(config: Tree) -> int:
    """The highest layer that a configuration names."""
    named = [value for path, value in leaves(config["model"]) if re.search(r"(^|_)layers?$", path[-1])]
    numbers = [n for value in named for n in (value if isinstance(value, list) else [value]) if n is not None]
    return max(numbers, default=2)


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


def kind(file: Path) -> tuple[str, str]:
    """Architecture and tokenizer for a config file, by the model in its name."""
    found = [kind for model, kind in KINDS.items() if file.stem.endswith(f"_{model}")]
    assert found, f"{file.name}: no model of KINDS in its name; add it to tests/test_configs.py"
    return found[0]


def test_the_configs_are_there() -> None:
    wanted = {f"{method}_{model}" for method in ("rome", "rrome", "memit") for model in KINDS}
    wanted |= {f"emmet_{model}" for model in ("smollm2", "gpt2_xl", "gptj", "llama2", "llama3")}
    assert wanted <= {f.stem for f in CONFIGS}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_config_runs(
    file: Path, tmp_path: Path, tiny_folder: Callable[..., str], rows_of: Callable[[Path], list[Tree]]
) -> None:
    config = yaml.safe_load(file.read_text())
    model_type, tokenizer = kind(file)
    model = tiny_folder(model_type, kind=tokenizer, n_layers=deepest(config) + 2)
    main(["fit", "--config", str(file), *overrides(config, model, tmp_path)])

    (run,) = tmp_path.iterdir()
    rows = rows_of(run)
    assert {row["batch"] for row in rows} == {0}
    assert [row["status"] for row in rows if row["when"] == "edit"] == ["edited"] * len(
        {row["case_id"] for row in rows}
    )
    values = list(numbers(rows))
    assert values
    assert all(math.isfinite(value) for value in values)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["protocol"]["regime"] == config["model"]["init_args"]["regime"]
    assert summary["protocol"]["fast_dev_run"]
    assert summary["failed"] == {}
    assert "rewrite" in summary["results"]["edit"]

    lm = load_lm(LMConfig(name=model, dtype=config["model"]["init_args"]["lm"]["dtype"]))
    saved = [path.parent for path in run.rglob("card.json")]
    assert saved
    for folder in saved:
        delta, card = load_delta(folder, lm)
        assert card["requests"]
        assert delta.changes
        assert all(bool(torch.isfinite(f.left).all() and f.left.any()) for f in delta.changes.values())


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_config_is_complete_and_commented(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = file.read_text()
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(file), "--print_config"])
    assert not stop.value.code
    known = yaml.safe_load(capsys.readouterr().out)
    mine = yaml.safe_load(text)
    parsed = dict(leaves(known))
    for path, value in leaves(mine):
        if path[-1] == "class_path":
            assert parsed[path].endswith(f".{value}")
        else:
            assert parsed[path] == value, path
    missing = [".".join(p) for p in parsed if p[0] in OWN and p not in dict(leaves(mine))]
    assert not missing, f"{file.name} does not show {missing}"
    bare = [line for line in text.splitlines() if re.match(r"\s*\w+: *[^\s#]", line) and " # " not in line]
    assert not bare, f"{file.name}: no comment on {bare}"
    assert f"kedit fit --config configs/{file.name}" in text


@pytest.mark.parametrize("file", [f for f in CONFIGS if f.stem.startswith(("rome", "rrome"))], ids=lambda f: f.stem)
def test_values_are_those_of_the_table(file: Path) -> None:
    args = yaml.safe_load(file.read_text())["model"]["init_args"]
    shape = SHAPES[re.sub(r"^r?rome_", "", file.stem)]
    given = (args["layer"], args["v_num_grad_steps"], args["v_weight_decay"], args["clamp_norm_factor"], args["v_lr"])
    assert given == astuple(TABLE[shape])


@pytest.mark.parametrize("file", [f for f in CONFIGS if f.stem.startswith(("memit", "emmet"))], ids=lambda f: f.stem)
def test_values_of_spread_methods_are_those_of_their_table(file: Path) -> None:
    method, _, model = file.stem.partition("_")
    args = yaml.safe_load(file.read_text())["model"]["init_args"]
    row = {"memit": MEMIT_TABLE, "emmet": EMMET_TABLE}[method][*SHAPES[model], WIDTHS[model]]
    v_star = (args["v_num_grad_steps"], args["v_weight_decay"], args["clamp_norm_factor"], args["v_lr"])
    assert (tuple(args["layers"]), args["mom2_update_weight"], *v_star) == astuple(row)


@pytest.mark.parametrize("file", CONFIGS[:1], ids=lambda file: file.stem)
@pytest.mark.parametrize("path", ["model.init_args.seed", "data.init_args.limit", "metrics.measure", "run.root"])
def test_a_slip_in_a_config_is_named(file: Path, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load(file.read_text())
    *parents, key = path.split(".")
    group = config
    for parent in parents:
        group = group[parent]
    group[key + "q"] = group.pop(key)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(wrong)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("kedit: error: ")
    assert path.replace(".init_args", "") + "q" in error
    assert len(error.splitlines()) <= 2
