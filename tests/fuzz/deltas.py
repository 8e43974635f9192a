"""Deltas on disk: damaged ones are named; an altered one is applied as it says, and undone bit for bit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.biases import BiasChange
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.pathway import Pathway
from kedit.delta.pathways import Pathways
from kedit.delta.serialization import load_delta, pack, save_delta
from kedit.delta.slices import Slices
from kedit.model.architecture import weight
from kedit.model.lm import LM
from tests.fuzz.damage import damaged
from tests.fuzz.harness import Case, Wrong
from tests.fuzz.mutate import as_json, changed
from tests.fuzz.tensors import retensored
from tests.support.killing import same
from tests.support.tiny_models import tiny_lm

TENSORS, CARD = "delta.safetensors", "card.json"


class Deltas:
    """A delta of every kind, whose two files are changed."""

    name, seconds = "deltas", 20.0

    def __init__(self, folder: Path) -> None:
        self.lm = tiny_lm("gpt2", n_layers=2, d_model=16, d_ff=24, context=32)
        self.before = {name: value.clone() for name, value in self.lm.model.state_dict().items()}
        self.ids = torch.tensor([self.lm.encode("The capital of France is Paris")])
        self.made = made(self.lm)
        self.folders = {}
        for name, delta in self.made.items():
            card = {
                "model": self.lm.name,
                "model_fingerprint": self.lm.fingerprint,
                "method": "ROME",
                "requests": [{"case_id": "a", "prompt": "{} is in", "subject": "Caf\u00e9", "target_new": "Rome"}],
                "results": {"edit": {"rewrite": 0.5}},
            }
            self.folders[name] = save_delta(folder / name, delta, card)

    def case(self, chance: Random, folder: Path) -> Case:
        """One changed delta."""
        name = chance.choice(list(self.folders))
        target = folder / name
        shutil.copytree(self.folders[name], target)
        kinds: list[Callable[[Path, Random], tuple[str, bool]]]
        kinds = [_bytes] * 9 + [_card_bytes] * 3 + [_tensors] * 5 + [_card] * 3 + [_files]
        change, altered = chance.choice(kinds)(target, chance)
        lm = None if chance.random() < 0.1 else self.lm
        return Case(f"{name}: {change}", lambda said: self._run(name, target, altered, lm))

    def _run(self, name: str, folder: Path, altered: bool, lm: LM | None) -> str:
        """Loads it, applies it, and looks at the model behind it."""
        delta, card = load_delta(folder, lm)
        try:
            delta.norm()
            with edited(self.lm.model, delta), torch.no_grad():
                self.lm.model(self.ids)
        finally:
            if not self._as_before():
                raise Wrong("the model is not as it was")
        kept = json.loads((self.folders[name] / CARD).read_text(encoding="utf-8"))
        if same(pack(delta), pack(self.made[name])) and card == kept:
            return "same"
        if not altered:
            raise Wrong(
                "a damaged delta was applied: " + ("its card differs" if card != kept else "its numbers differ")
            )
        for path, tensor in delta.numbers():
            if not bool(tensor.isfinite().all()):
                raise Wrong(f"NaN or infinity was applied: {path}")
        return "other"

    def _as_before(self) -> bool:
        model = self.lm.model
        hooks = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        return not hooks and all(torch.equal(self.before[name], value) for name, value in model.state_dict().items())


def made(lm: LM) -> dict[str, Delta]:
    """A delta of every kind, and one with all of them."""
    g = torch.Generator().manual_seed(3)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    paths = [lm.arch.path("mlp_out", layer) for layer in (0, 1)]
    d_out, d_in = weight(lm.model.get_submodule(paths[0])).shape
    factors = {path: Factors(0.1 * rand(d_out, 2), rand(2, d_in)) for path in paths}
    slices = {
        paths[0]: Slices(torch.tensor([1, 5]), rand(2, d_in), 0, (d_out, d_in)),
        paths[1]: Slices(torch.tensor([0, 3, 7]), rand(3, d_out), 1, (d_out, d_in)),
    }
    biases = {path: BiasChange(rand(d_out)) for path in paths}
    plain = {"down": rand(3, d_in) / math.sqrt(d_in), "up": rand(d_in, 3)}
    gate = {"bias": rand(), "threshold": rand() / 2}
    pathways = {
        paths[0]: Pathways(
            (
                Pathway(**plain, read=rand(d_in), offset=rand(d_in), **gate),
                Pathway(**plain, read=rand(d_in), hysteresis=torch.tensor(0.3), **gate),
            )
        ),
        paths[1]: Pathways(
            (
                Pathway(**plain, hidden=rand(5, d_in), hidden_bias=rand(5), read=rand(5), **gate),
                Pathway(**plain),
            )
        ),
    }
    return {
        "factors": Delta(factors),
        "slices": Delta(slices),
        "biases": Delta(factors, biases),
        "pathways": Delta(pathways),
        "all": Delta(factors, pathways, slices, biases),
    }


def sealed(folder: Path) -> bool:
    """Gives altered files the checksums that are right for them, where deltas have any."""
    if find_spec("kedit.runtime.checksum") is None:
        return True
    checksum: Any = import_module("kedit.runtime.checksum")
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        sums = {"tensors": checksum.of_file(folder / TENSORS)}
        card["checksums"] = sums
        sums["card"] = checksum.of_json(card)
        (folder / CARD).write_text(json.dumps(card), encoding="utf-8")
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _bytes(folder: Path, chance: Random) -> tuple[str, bool]:
    data, change = damaged((folder / TENSORS).read_bytes(), chance)
    (folder / TENSORS).write_bytes(data)
    return f"{TENSORS}: {change}", False


def _card_bytes(folder: Path, chance: Random) -> tuple[str, bool]:
    data, change = damaged((folder / CARD).read_bytes(), chance, text=True)
    (folder / CARD).write_bytes(data)
    return f"{CARD}: {change}", False


def _tensors(folder: Path, chance: Random) -> tuple[str, bool]:
    tensors, change = retensored(load_file(folder / TENSORS), chance)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / TENSORS)
    altered = chance.random() < 0.7 and sealed(folder)
    return f"{change}{', sealed' if altered else ''}", altered or not _has_sums(folder)


def _card(folder: Path, chance: Random) -> tuple[str, bool]:
    had = _has_sums(folder)
    card, change, _ = changed(json.loads((folder / CARD).read_text(encoding="utf-8")), chance)
    text = as_json(card, chance, ensure_ascii=chance.random() < 0.5)
    (folder / CARD).write_bytes(text.encode("utf-8", "surrogatepass"))
    altered = chance.random() < 0.7 and isinstance(card, dict) and sealed(folder)
    return f"{CARD}: {change}{', sealed' if altered else ''}", altered or not had


def _files(folder: Path, chance: Random) -> tuple[str, bool]:
    name = chance.choice([TENSORS, CARD])
    path = folder / name
    change = chance.choice(["missing", "a folder", "the other file", "a dead link"])
    other = (folder / (CARD if name == TENSORS else TENSORS)).read_bytes()
    path.unlink()
    if change == "a folder":
        path.mkdir()
    elif change == "the other file":
        path.write_bytes(other)
    elif change == "a dead link":
        path.symlink_to("nothing")
    return f"{name}: {change}", False


def _has_sums(folder: Path) -> bool:
    try:
        return "checksums" in json.loads((folder / CARD).read_text(encoding="utf-8"))
    except ValueError:
        return False
