"""Every file in configs/ runs: one edit batch on a tiny model of its architecture, measured and saved."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from kedit import methods
from kedit.cli import main
from kedit.cli.options.help import SHOWN
from kedit.data.robust_queries import QueryConfig
from kedit.delta.change import Change
from kedit.delta.codebook import Codebook
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors
from kedit.delta.pathways import Pathways
from kedit.delta.prompt_memory import PromptMemory
from kedit.delta.serialization import load_delta
from kedit.delta.slices import Slices
from kedit.forward.binding import load_lm
from kedit.methods import REP, ROME
from kedit.methods.locate_then_edit.base import LocateThenEdit
from kedit.methods.rep import AdapterConfig, parity_config
from kedit.methods.steam import AlignConfig, AnchorConfig
from kedit.model.lm import LMConfig
from kedit.sweeps.spec import Task
from tests.support.config_files import (
    CONFIGS,
    CONTROLS,
    DATA_OF_PAC,
    REFERENCES,
    ROOT,
    Tree,
    arms,
    leaves,
    tree_of,
    whole,
)
from tests.support.device import ACCELERATOR
from tests.support.tiny_models import TEXT, tiny_lm

FIXTURES = ROOT / "tests" / "fixtures"

# The model in a config's name (METHOD_MODEL.yaml): architecture and tokenizer of its tiny stand-in.
KINDS: dict[str, tuple[str, str]] = {
    "smollm2": ("llama", "bpe"),
    "gpt2_xl": ("gpt2", "bpe"),
    "gptj": ("gptj", "bpe"),
    "llama2": ("llama", "sentencepiece"),
    "llama3": ("llama", "bpe_bos"),
    "mistral": ("mistral", "sentencepiece"),
    "qwen2": ("qwen2", "bpe"),
    "qwen25": ("qwen2", "bpe"),
}
SHAPES = {
    "smollm2": ("llama", 30, 576),
    "gpt2_xl": ("gpt2", 48, 1600),
    "gptj": ("gptj", 28, 4096),
    "llama2": ("llama", 32, 4096),
    "llama3": ("llama", 32, 4096),
    "mistral": ("mistral", 32, 4096),
    "qwen2": ("qwen2", 28, 3584),
    "qwen25": ("qwen2", 28, 3584),
}  # of the models themselves, as the methods' tables have them
WIDTHS = {
    "smollm2": 1536,
    "gpt2_xl": 6400,
    "gptj": 16384,
    "llama2": 11008,
    "llama3": 14336,
    "mistral": 14336,
    "qwen2": 18944,
    "qwen25": 18944,
}  # of their keys
FILES = {
    "CounterFact": "counterfact_official.json",
    "Records": "records.jsonl",
    "RobustQueries": "robust.json",
    "ZsRE": "zsre.json",
}
SMALL = {
    "contexts": {"lengths": [[3, 2]]},
    "stats": {"tokens": 400, "corpus": "self"},
    "queries": {"long_words": [20], "paraphrases": 4, "shuffles": 2, "train_long": 1},
    "adapter": {"corpus_tokens": 200},
    "trace": {"nodes": 5},
    "train": {"passes": 2},
    "locality": {"prompts": 2, "facts": 8, "others": 2},
}
MEMORIES = ("retrieval", "ike")
KIND_OF: dict[str, tuple[type[Change], ...]] = {  # others: factors, or whole matrices
    "PAC": (Slices,),
    "KN": (Slices,),
    "RECT": (Dense,),
    "GRACE": (Codebook,),
    "Retrieval": (PromptMemory,),
    "IKE": (PromptMemory,),
}
STEAM_MODELS = ("smollm2", "gpt2_xl", "gptj", "llama3", "qwen2")
ROBUST = ("robustness", "similarity")  # of runs with robust queries
ARMS = arms()


def groups(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tree]]:
    """Every group of options of a configuration."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield (*path, key), value
            yield from groups(value, (*path, key))


def overrides(config: Tree, folder: str, root: Path) -> list[str]:
    """What makes a run of a configuration small: wherever in it the options stand."""
    data = config["data"]["class_path"].rpartition(".")[2]
    options = {
        "lm.name": folder,
        "run.root": str(root),
        "trainer.accelerator": ACCELERATOR,
        "trainer.fast_dev_run": "true",
    }
    options |= {"data.init_args.known": "false", "data.init_args.limit": "2", "robustness.fluency": "false"}
    if data in FILES:
        options["data.init_args.path"] = str(FIXTURES / FILES[data])
    if "nullspace_threshold" in config["model"]["init_args"]:  # tiny models have long keys
        options["model.init_args.nullspace_threshold"] = "1e3"
    parts = {"model": config["model"], "data": config["data"]}
    fixed = {"adapter", "train"} if config["model"]["init_args"].get("parity") else set()  # by the paper's recipe
    for path, _ in groups(parts):
        name = ".".join(path)
        small = {} if path[-1] in fixed else SMALL.get(path[-1], {})
        options |= {f"{name}.{key}": v if isinstance(v, str) else json.dumps(v) for key, v in small.items()}
        if path[-1] == "queries":
            corpus = Path(folder).parent / "corpus.txt"
            corpus.write_text(TEXT)
            options[f"{name}.corpus"] = str(corpus)
    return [f"--{name}={value}" for name, value in options.items()]


def deepest(config: Tree) -> int:
    """The highest layer that a configuration names."""
    named = [value for path, value in leaves(config["model"]) if re.search(r"(^|_)layers?$", path[-1])]
    numbers = [n for value in named for n in (value if isinstance(value, list) else [value]) if isinstance(n, int)]
    return max(numbers, default=2)


def editor_of(config: Tree) -> tuple[str, Tree]:
    """Class and options of the method that edits: of REP's or STEAM's editor, or the method itself."""
    model = config["model"]
    model = model.get("init_args", {}).get("editor", model)
    return model["class_path"], model.get("init_args", {})


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


def kind(file: Path) -> tuple[str, str]:
    """Architecture and tokenizer for a config file, by the model in its name; a reference has SmolLM2."""
    if file in REFERENCES:
        return KINDS["smollm2"]
    found = [kind for model, kind in KINDS.items() if file.stem.endswith(f"_{model}")]
    assert found, f"{file.name}: no model of KINDS in its name; add it to tests/runs/test_configs.py"
    return found[0]


def test_the_configs_are_there() -> None:
    wanted = {f"{method}_{model}" for method in ("rome", "rrome", "memit") for model in KINDS if model != "qwen2"}
    wanted |= {f"rep_{model}" for model in ("smollm2", "rrome_smollm2", "memit_smollm2", "emmet_smollm2")}
    wanted |= {f"rep_{model}" for model in ("llama2", "mistral", "qwen2")}
    wanted |= {f"steam_{editor}_{model}" for editor in ("rome", "memit") for model in STEAM_MODELS}
    wanted |= {f"emmet_{model}" for model in ("smollm2", "gpt2_xl", "gptj", "llama2", "llama3")}
    wanted |= {"pac_smollm2", "pac_parity_smollm2", "prune_memit_smollm2", "rect_memit_smollm2"}
    wanted |= {f"lora_{model}" for model in ("smollm2", "gpt2_xl", "gptj", "llama2", "llama3", "qwen25")}
    wanted |= {f"kn_{model}" for model in ("smollm2", "gpt2_xl", "gptj", "llama2", "llama3")}
    wanted |= {f"{method}_smollm2" for method in MEMORIES}
    wanted |= {f"alphaedit_{model}" for model in ("smollm2", "gpt2_xl", "gptj", "llama3")}
    wanted |= {f"pmet_{model}" for model in ("smollm2", "gptj", "llama2")}
    wanted |= {f"pac_{data}_{model}" for data in DATA_OF_PAC for model in ("smollm2", "gptj", "llama2", "llama3")}
    wanted |= {f"ft_{model}" for model in ("smollm2", "gpt2_xl", "gptj", "llama2", "llama3")}
    wanted |= {f"locft_{model}" for model in ("smollm2", "llama3", "mistral", "qwen25")}
    wanted |= {f"ultraedit_{model}" for model in ("smollm2", "gptj", "llama3", "mistral", "qwen25")}
    wanted |= {f"grace_{model}" for model in ("smollm2", "gpt2_xl", "gptj", "llama2", "qwen25")}
    assert wanted == {f.stem for f in CONFIGS}
    names = {name.lower() for name in methods.__all__ if name != "EditingModule"}
    assert {f.stem for f in REFERENCES} == names
    assert {f.stem.split("_")[0] for f in CONFIGS} == names
    assert {task.labels["arm"] for task in ARMS} == {"default", "edit", *CONTROLS}


@pytest.mark.parametrize("file", [*CONFIGS, *REFERENCES], ids=lambda file: file.stem)
def test_config_runs(
    file: Path, tmp_path: Path, tiny_folder: Callable[..., str], rows_of: Callable[[Path], list[Tree]]
) -> None:
    check_run(["--config", str(file)], kind(file), tmp_path, tiny_folder, rows_of)


@pytest.mark.parametrize("arm", ARMS, ids=lambda task: task.labels["arm"])
def test_an_arm_of_pac_runs(
    arm: Task,
    tmp_path: Path,
    tiny_folder: Callable[..., str],
    rows_of: Callable[[Path], list[Tree]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    check_run(arm.words(), KINDS["smollm2"], tmp_path, tiny_folder, rows_of)


def check_run(
    words: list[str],
    of_kind: tuple[str, str],
    tmp_path: Path,
    tiny_folder: Callable[..., str],
    rows_of: Callable[[Path], list[Tree]],
) -> None:
    """One edit batch on a tiny model is made, measured and saved."""
    config = tree_of(*words)
    method = config["model"]["class_path"].rpartition(".")[2]
    model_type, tokenizer = of_kind
    model = tiny_folder(model_type, kind=tokenizer, n_layers=deepest(config) + 2)
    main(["fit", *words, *overrides(config, model, tmp_path)])

    (run,) = tmp_path.iterdir()
    rows = rows_of(run)
    assert {row["batch"] for row in rows} == {0}
    for measured_at in {row["measured_at"] for row in rows}:
        done = [row["status"] for row in rows if row["measured_at"] == measured_at]
        assert done == ["edited"] * len({row["case_id"] for row in rows})
    values = list(numbers(rows))
    assert values
    assert all(math.isfinite(value) for value in values)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["protocol"]["regime"] == (config["edit"]["regime"] or getattr(methods, method).usual_regime)
    assert summary["protocol"]["fast_dev_run"]
    assert summary["failed"] == {}
    assert "rewrite" in summary["results"]["edit"]

    lm = load_lm(LMConfig(name=model, dtype=config["lm"]["dtype"]))
    saved = [path.parent for path in run.rglob("card.json")]
    assert saved
    for folder in saved:
        delta, card = load_delta(folder, lm)
        assert card["requests"]
        kinds = KIND_OF.get(method, (Factors, Dense))
        changed = {path: change for path, own in delta.items() for change in own if isinstance(change, kinds)}
        assert changed
        assert changed.keys() == set(delta.paths)
        assert all(bool(tensor.isfinite().all()) for _, tensor in delta.numbers())
        assert all(bool(tensor.any()) for change in changed.values() for tensor in change.numbers())
        adapted = delta.of_kind(Factors).keys() if method == "REP" else set()
        assert delta.of_kind(Pathways).keys() == adapted


def defaults(config: Tree, path: str | None = None) -> Tree:
    """Every option of a run of the same classes, at its default."""
    model, data = config["model"], config["data"]
    editor = model.get("init_args", {}).get("editor")
    words = ["--model", model["class_path"], *(["--model.editor", editor["class_path"]] if editor else [])]
    return tree_of(*words, "--data", data["class_path"], *(["--data.path", path] if path else []))


@pytest.mark.parametrize("file", REFERENCES, ids=lambda file: file.stem)
def test_a_reference_shows_every_option_at_its_default(file: Path) -> None:
    text = file.read_text()
    mine = yaml.safe_load(text)
    own = dict(leaves(mine))
    for path, value in leaves(defaults(mine)):
        if path[0] == "trainer" and path not in own:
            continue  # Lightning's: kedit fit --help-trainer
        assert path in own, f"{file.name} does not show {'.'.join(path)}"
        assert own[path] == (value.rpartition(".")[2] if path[-1] == "class_path" else value), path
    assert {path[1] for path in own if path[0] == "trainer"} == set(SHOWN)
    assert dict(leaves(whole(file))).keys() >= own.keys()
    bare = [line for line in text.splitlines() if re.match(r"\s*\w+: *[^\s#]", line) and " # " not in line]
    assert not bare, f"{file.name}: no comment on {bare}"
    assert f"kedit fit --config configs/reference/{file.name}" in text


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_says_what_differs_from_the_defaults(file: Path) -> None:
    text = file.read_text()
    mine, known = yaml.safe_load(text), dict(leaves(whole(file)))
    default = dict(leaves(defaults(mine, mine["data"]["init_args"].get("path") and "a path")))
    for path, value in leaves(mine):
        if path[-1] == "class_path":
            assert known[path].endswith(f".{value}")
        else:
            assert known[path] == value, path
            assert path == ("lm", "name") or default.get(path, "?") != value, f"{path} is at its default"
    assert 5 <= len([path for path, _ in leaves(mine) if path[-1] != "class_path"]) <= 20
    head = text.partition("\n\n")[0]
    assert f"kedit fit --config configs/{file.name}" in head
    assert f"configs/reference/{file.stem.split('_')[0]}.yaml" in head


def class_of(file: Path) -> type:
    """The method that edits in a config."""
    return getattr(methods, editor_of(yaml.safe_load(file.read_text()))[0])


@pytest.mark.parametrize("file", [f for f in CONFIGS if hasattr(class_of(f), "published")], ids=lambda f: f.stem)
def test_values_are_those_of_the_table(file: Path) -> None:
    method, args = editor_of(yaml.safe_load(file.read_text()))
    model = next(model for model in KINDS if file.stem.endswith(f"_{model}"))
    of = getattr(methods, method)
    row = of.published.row((*SHAPES[model], WIDTHS[model]))
    if row is None:  # no values of their own for SmolLM2
        row = of.published.of(tiny_lm("llama", n_layers=30))
    assert {name: args[name] for name in row} == {n: list(v) if isinstance(v, tuple) else v for n, v in row.items()}
    if issubclass(of, LocateThenEdit):
        assert {"v_num_grad_steps", "v_weight_decay", "clamp_norm_factor", "v_lr"} < row.keys()


REP_CONFIGS = [file for file in CONFIGS if file.stem.startswith("rep_")]


@pytest.mark.parametrize("file", REP_CONFIGS, ids=lambda file: file.stem)
def test_an_adapter_is_shown_as_it_is_in_effect(file: Path) -> None:
    """The options of the adapter are those of the code: the defaults, or with parity the paper's."""
    args = yaml.safe_load(file.read_text())["model"]["init_args"]
    parity = args.get("parity", False)
    assert parity == ("smollm2" not in file.stem)
    assert "adapter" not in args
    assert REP(ROME(), parity=parity).adapter == (parity_config() if parity else AdapterConfig())


@pytest.mark.parametrize("file", [f for f in REP_CONFIGS if "smollm2" in f.stem], ids=lambda file: file.stem)
def test_an_editor_beside_rep_is_that_of_its_own_config(file: Path) -> None:
    config = whole(file)
    name = file.stem.removeprefix("rep_")
    own = whole(file.parent / f"{'' if '_' in name else 'rome_'}{name}.yaml")
    assert config["model"]["init_args"]["editor"] == own["model"]
    assert config["data"]["init_args"]["queries"] == asdict(QueryConfig())
    differ = {path for path, value in leaves(config) if dict(leaves(own)).get(path) != value and path[0] != "model"}
    assert {path for path in differ if path[0] not in ROBUST and "queries" not in path} == {
        ("data", "init_args", "limit")  # fewer, because more is measured
    }


@pytest.mark.parametrize("file", [f for f in REP_CONFIGS if "smollm2" not in f.stem], ids=lambda file: file.stem)
def test_what_the_paper_did_differently_from_our_rome(file: Path) -> None:
    config = whole(file)
    editor, data = config["model"]["init_args"]["editor"], config["data"]["init_args"]
    own = whole(file.parent / f"{file.stem.replace('rep', 'rome').replace('qwen2', 'qwen25')}.yaml")
    corpus = "hf:wikitext:wikitext-103-raw-v1:train"
    changed = {path: value for path, value in leaves(editor) if dict(leaves(own["model"]))[path] != value}
    assert changed == {("init_args", "stop_loss"): 0.0, ("init_args", "stats", "corpus"): corpus}
    assert config["lm"] == own["lm"] | ({"name": "Qwen/Qwen2-7B"} if "qwen" in file.stem else {})
    assert data["queries"] == asdict(QueryConfig(corpus=corpus))


@pytest.mark.parametrize("file", [f for f in CONFIGS if f.stem.startswith("steam_")], ids=lambda file: file.stem)
def test_steam_shows_its_defaults_around_an_editor_of_its_own_config(file: Path) -> None:
    config = whole(file)
    args = config["model"]["init_args"]
    assert args["anchors"] == asdict(AnchorConfig())
    assert args["align"] == asdict(AlignConfig())
    own = whole(file.parent / f"{file.name.removeprefix('steam_').replace('qwen2', 'qwen25')}")
    changed = {path: value for path, value in leaves(args["editor"]) if dict(leaves(own["model"]))[path] != value}
    assert args["editor"].keys() == own["model"].keys()
    assert changed == {}
    differ = {path for path, value in leaves(config) if path[0] != "model" and dict(leaves(own))[path] != value}
    generate = {("metrics", "scoring", "generate")}  # portability too, for port_em
    limit = {("data", "init_args", "limit")} if "smollm2" in file.stem else set()  # more is done for each
    name = {("lm", "name")} if "qwen" in file.stem else set()
    assert config["lm"]["name"] == ("Qwen/Qwen2-7B" if name else own["lm"]["name"])
    assert differ == generate | limit | name
    assert config["metrics"]["scoring"]["generate"] == ["rewrite", "portability"]
    header = " ".join(line.removeprefix("# ") for line in file.read_text().partition("\n\n")[0].splitlines())
    assert "Findings of EMNLP 2025" in header
    assert "kedit's choice: the paper's lambda, layers and numbers of references were not available to us" in header


@pytest.mark.parametrize("file", REFERENCES[:1], ids=lambda file: file.stem)
@pytest.mark.parametrize("path", ["edit.seed", "data.init_args.limit", "metrics.measure", "run.root"])
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
