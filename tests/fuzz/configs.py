"""Configurations: refused in a line or two, or taken; a share of them runs on a tiny model, one batch, one step."""

from __future__ import annotations

import copy
import math
import os
from contextlib import chdir
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import yaml

from kedit.cli import main
from kedit.cli.commands.fit import parsed
from kedit.cli.options.help import SHOWN
from tests.fuzz.damage import damaged
from tests.fuzz.harness import ROOT, Case, Said, Wrong
from tests.fuzz.mutate import DEEP, HUGE, at, changed, paths
from tests.support.config_files import whole
from tests.support.device import ACCELERATOR
from tests.support.small_runs import city_facts
from tests.support.tiny_models import TEXT, save_tiny

BASES = ("rome", "rrome", "memit", "emmet", "pac", "rep", "rep_memit", "steam_rome")
SLOW = "rep"  # parsed alone: a run takes ten seconds
RUNS = 0.25  # share of the cases that run
TINY = 4  # layers and so on of what runs

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, 1e308, -1e-9, float("nan"), float("inf"), float("-inf"), HUGE, DEEP),
    *(
        "",
        " ",
        "text",
        "NaN",
        "1e3",
        "08",
        "0x10",
        "null",
        "true",
        "..",
        "/proc/nope",
        "~nobody",
        "a\u0000b",
        "x" * 300,
    ),
    *(
        "${HOME}",
        "\u6771\u4eac",
        "\ud7ff",
        "os.system",
        "kedit.methods",
        "kedit.methods.ROME",
        "builtins.print",
        "ROMEO",
    ),
    *([], [1], [[1, 2]], [[]], ["x"], {}, {"a": 1}, {"class_path": "os.system"}, {"class_path": "Facts"}),
)
LONG: tuple[Any, ...] = (10**6, 10**12, 2**31, 2**63, 10**30, -(10**30))
"""Numbers that may well be meant, and then take long: for parsing alone."""

NUMBERS: tuple[Any, ...] = (
    *(
        float("nan"),
        float("nan"),
        float("inf"),
        float("inf"),
        float("-inf"),
        "nan",
        ".inf",
        -1,
        0,
        1,
        0.5,
        -0.5,
        1e308,
        1e-320,
    ),
    *(True, None, "1", [1]),
)

TEXTS = (
    *("a: &a [*a]\n", "model: &m\n  class_path: ROME\n  init_args: *m\n", "&x {<<: *x}\n", "? [a, b]\n: c\n", "- a\n"),
    *(
        "!!python/object/apply:os.system ['touch hacked']\n",
        "model: !!python/name:os.system\n",
        "a: 1\na: 2\n",
        "1: 2\n",
    ),
    *("--- a\n--- b\n", "lm: {name: !!binary aGk=}\n", "data:\n\tlimit: 3\n"),
    *("model: 2001-01-01\n", "model: {class_path: ROME, init_args: {layer: !!float 1}}\n", "model: ROME\n", "@\n"),
    *("data: {limit: 1_000}\nmodel: 1:30\n", "%YAML 9.9\n---\n", "a: |\n x\n x\n", "\u0000", "a: \ud7ff\u2028b\n"),
    *("[" * 5000, "{a: " * 3000, "? " * 2000, "a: " + "9" * 5000 + "\n"),
)
"""What YAML has and a configuration should not."""


class Configs:
    """The configurations of configs/, changed as values and as text."""

    name, seconds = "configs", 90.0

    def __init__(self, folder: Path) -> None:
        self.model = str(save_tiny(folder / "model", "llama", n_layers=TINY, d_model=16, d_ff=40, context=128))
        self.facts = str(city_facts(folder / "facts.jsonl", TINY))
        self.text = folder / "text.txt"
        self.text.write_text(TEXT, encoding="utf-8")
        files = {name: ROOT / "configs" / f"{name}_smollm2.yaml" for name in BASES}
        self.bases = {name: whole(file) for name, file in files.items()}
        for base in self.bases.values():
            base["trainer"] = {name: base["trainer"][name] for name in SHOWN}

    def case(self, chance: Random, folder: Path) -> Case:
        """One changed configuration."""
        name = chance.choice(list(self.bases))
        config, runs = self.bases[name], name != SLOW and chance.random() < RUNS
        if runs:
            config = self._tiny(config)
        changes = []
        times = chance.choice([1, 1, 1, 2, 3])
        numbers = chance.random() < 0.5  # one option becomes another number
        for _ in range(1 if numbers else times):
            if numbers:
                new, change, path = _renumbered(config, chance, NUMBERS if runs else NUMBERS + LONG)
            else:
                new, change, path = changed(config, chance, VALUES if runs else VALUES + LONG)
            if runs and set(map(str, path)) & {"name", "corpus", "root", "devices"}:
                continue  # another model, or its text, or more processes
            config = new
            changes.append(change)
        data = _as_yaml(config, chance).encode("utf-8", "surrogatepass")
        if not changes or (not runs and chance.random() < 0.2):
            data, change = _rewritten(data, chance)
            changes.append(change)
        file = folder / "config.yaml"
        file.write_bytes(data)
        odd = len(changes) == 1 and _odd_number(config, self._tiny(self.bases[name])) if runs else False
        return Case(f"{name}{', run' if runs else ''}: {'; '.join(changes)}", lambda said: _run(file, runs, odd, said))

    def _tiny(self, config: dict[str, Any]) -> dict[str, Any]:
        """The same on a tiny model, with few facts and little text."""
        config = copy.deepcopy(config)
        config["lm"]["name"] = self.model
        args = config["model"]["init_args"]
        for own in (args, args.get("editor", {}).get("init_args", {})):
            if "layer" in own:
                own["layer"] = 1
            if "layers" in own:
                own["layers"] = [1, 2]
            if "stats" in own:
                own["stats"] |= {"corpus": str(self.text), "tokens": 200, "sequence_length": 64}
            if "contexts" in own:
                own["contexts"]["lengths"] = [[3, 1]]
            if "trace" in own:
                own["trace"]["nodes"] = 4
            for steps in ("v_num_grad_steps", "passes"):
                if steps in own:
                    own[steps] = 2
        config["data"] = {"class_path": "Records", "init_args": {"path": self.facts, "limit": 2}}
        config["trainer"] |= {"accelerator": ACCELERATOR, "fast_dev_run": True}
        config["texts"] = {"enabled": False}
        return config


def _run(file: Path, runs: bool, odd: bool, said: Said) -> str:
    """Gives it to the command."""
    words = ["fit", "--config", str(file)]
    threads = os.environ.get("OMP_NUM_THREADS")
    with chdir(file.parent):
        try:
            if runs:
                main(words)
            else:
                with patch("kedit.cli.commands.fit.fit", parsed):
                    main(words)
        finally:
            if (file.parent / "hacked").exists():
                raise Wrong("code was run")
            if threads is not None:
                os.environ["OMP_NUM_THREADS"] = threads
    if runs and odd:
        raise Wrong("NaN or infinity was taken for a number: it ran")
    return "ran" if runs else "parsed"


def _renumbered(config: Any, chance: Random, values: tuple[Any, ...]) -> tuple[Any, str, tuple[Any, ...]]:
    """The same with another value for one option: for a number often one that may be allowed, for any other nothing."""
    config = copy.deepcopy(config)
    leaves = [path for path in paths(config) if not isinstance(at(config, path), dict | list)]
    numbers = [path for path in leaves if type(at(config, path)) in (int, float)]
    path = chance.choice(numbers if chance.random() < 0.7 else leaves)
    old = at(config, path)
    if type(old) in (int, float) and chance.random() < 0.5:
        value = chance.choice([2 * old, old / 2, old // 2, old + 1, -old, float(old), 0, 1])
    elif isinstance(old, bool):
        value = not old
    else:
        value = chance.choice(values if path in numbers else (None, None, 0, "text", []))
    at(config, path[:-1])[path[-1]] = value
    return config, f"{'.'.join(map(str, path))}: becomes {value!r}", path


def _odd_number(config: Any, base: Any) -> bool:
    """Whether the only thing changed is a number, which became NaN or infinity."""
    found = [
        path for path in paths(config) if isinstance(at(config, path), float) and not math.isfinite(at(config, path))
    ]
    try:
        old = [at(base, path) for path in found]
    except (KeyError, IndexError, TypeError):
        return False
    return len(old) == 1 and isinstance(old[0], int | float) and not isinstance(old[0], bool)


def _as_yaml(config: Any, chance: Random) -> str:
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=chance.random() < 0.5)
    depth = chance.choice([30, 500, 5000])
    return text.replace(f"'{DEEP}'", "[" * depth + "]" * depth).replace(f"'{HUGE}'", "9" * 5000)


def _rewritten(data: bytes, chance: Random) -> tuple[bytes, str]:
    if chance.random() < 0.5:
        text = chance.choice(TEXTS)
        more = text.encode()
        where = chance.choice(["alone", "before", "behind"])
        return {"alone": more, "before": more + data, "behind": data + more}[where], f"{text[:40]!r} {where}"
    return damaged(data, chance, text=True)
