"""Files of statistics in the cache: what is asked for has the same bits, is taken anew, or is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file

from kedit.covariance import Covariance, StatsConfig, covariances, load_covariance, store
from kedit.model.lm import LM
from tests.fuzz.damage import damaged
from tests.fuzz.harness import Case, Said, Wrong
from tests.fuzz.mutate import changed
from tests.fuzz.tensors import retensored
from tests.support.killing import same
from tests.support.tiny_models import TEXT, tiny_lm

LAYERS = (0, 1)
Change = Callable[[Path, Random], tuple[str, bool]]


class Statistics:
    """Two layers over a file and over the model's own text, finished, and stopped half-way."""

    name, seconds = "statistics", 30.0

    def __init__(self, folder: Path) -> None:
        self.lm = _lm(0)
        text = folder / "text.txt"
        text.write_text(TEXT, encoding="utf-8")
        common: dict[str, Any] = {"tokens": 192, "sequence_length": 32, "batch_tokens": 64}
        self.configs = {"file": StatsConfig(corpus=str(text), **common), "self": StatsConfig(**common)}
        self.caches: dict[str, Path] = {}
        self.right: dict[str, dict[int, Covariance]] = {}
        for name, config in self.configs.items():
            cache = self.caches[name] = folder / name
            self.right[name] = covariances(self.lm, LAYERS, config, cache)
            cache = self.caches[f"{name}, half"] = folder / f"{name}-half"
            try:
                covariances(self.lm, LAYERS, config, cache, _stop, save_seconds=0)
            except _Stopped:
                assert list(cache.rglob("partial-*"))
        self.foreign = [path for cache in self.caches.values() for path in sorted(cache.rglob("*.safetensors"))]
        fewer: dict[str, Any] = common | {"tokens": 160}
        covariances(_lm(1), LAYERS, self.configs["file"], folder / "other")
        covariances(self.lm, LAYERS, StatsConfig(corpus=str(text), **fewer), folder / "fewer")
        for more in ("other", "fewer"):
            self.foreign += sorted((folder / more).rglob("*.safetensors"))
        strange = folder / "strange.safetensors"
        save_file({"mean": torch.eye(24)}, strange, {"kedit": "[]"})
        self.foreign.append(strange)

    def case(self, chance: Random, folder: Path) -> Case:
        """One changed file of one cache."""
        name = chance.choice(list(self.caches))
        cache = folder / "cache"
        shutil.copytree(self.caches[name], cache)
        path = chance.choice(sorted(cache.rglob("*.safetensors")))
        kinds: list[Change] = [_bytes] * 10 + [_tensors] * 3 + [_card] * 4 + [self._foreign] * 2 + [_file]
        kind = chance.choice(kinds)
        change, altered = kind(path, chance)
        base, _, half = name.partition(",")
        named = not half and path.parent.name != cache.name and path.stem.endswith("c_proj") and chance.random() < 0.3
        given = path if named else None
        altered |= named and kind == self._foreign  # a file that is named may be of another text
        return Case(f"{name}, {path.name}: {change}", lambda said: self._run(base, cache, given, altered, said))

    def _run(self, name: str, cache: Path, given: Path | None, altered: bool, said: Said) -> str:
        """Asks for both layers, or for a file by name."""
        kept = {path: path.read_bytes() for path in cache.rglob("*.safetensors") if path.is_file()}
        if given is not None:
            layer = next(layer for layer in LAYERS if given.stem == self.lm.arch.path("mlp_out", layer))
            found = {layer: load_covariance(given, self.lm, layer)}
        else:
            found = covariances(self.lm, LAYERS, self.configs[name], cache)
        right = self.right[name]
        for layer, cov in found.items():
            cov.solve(torch.ones(cov.d_in))
            wanted = right[layer]
            if cov.count == wanted.count and same(cov.mean, wanted.mean):
                continue
            if not altered:
                raise Wrong(f"other statistics: layer {layer}, count {cov.count}")
            return "other"
        again = {path: path.read_bytes() for path in cache.rglob("*.safetensors") if path.is_file()}
        return "same" if kept == again else "recomputed"

    def _foreign(self, path: Path, chance: Random) -> tuple[str, bool]:
        other = chance.choice([other for other in self.foreign if other.read_bytes() != path.read_bytes()])
        shutil.copyfile(other, path)
        return f"is {'/'.join(other.parts[-4:])}", False


class _Stopped(Exception):
    """The pass is to stop half-way."""


def _stop(what: str, done: int, total: int) -> None:
    if what.startswith("statistics of") and done >= total // 2:
        raise _Stopped


def _lm(seed: int) -> LM:
    return tiny_lm("gpt2", n_layers=2, d_model=16, d_ff=24, context=64, seed=seed)


def _bytes(path: Path, chance: Random) -> tuple[str, bool]:
    data, change = damaged(path.read_bytes(), chance)
    path.write_bytes(data)
    return change, False


def _tensors(path: Path, chance: Random) -> tuple[str, bool]:
    """Written as kedit writes, with the checksum that it has then."""
    tensors, card = store.read(path)
    tensors, change = retensored(tensors, chance)
    store.write(path, tensors, card)
    return change, True


def _card(path: Path, chance: Random) -> tuple[str, bool]:
    tensors, card = store.read(path)
    card, change, _ = changed(card, chance, VALUES)
    store.write(path, tensors, card if isinstance(card, dict) else {"key": card})
    return f"card: {change}", True


def _file(path: Path, chance: Random) -> tuple[str, bool]:
    change = chance.choice(["missing", "a folder", "a dead link"])
    path.unlink()
    if change == "a folder":
        path.mkdir()
    elif change == "a dead link":
        path.symlink_to("nothing")
    return change, False


VALUES = (None, True, 0, -1, 10**30, 3.5, float("nan"), "", "text", [], {}, [None], {"a": 1}, "x" * 5000)
