"""Codebooks: exact look-up, bits that stay, adding, lanes, caches, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.delta.apply import Weights, edited
from kedit.delta.codebook import Codebook
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.serialization import load_delta, pack, save_delta, unpack
from kedit.errors import KeditError
from kedit.model.architecture import weight
from kedit.model.lm import LM
from tests.support.tiny_models import KINDS, tiny_lm

TEXT = "The capital of France is Paris"
OTHER = "Because of the rain, we stayed at home."


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def book(keys: Tensor, d_out: int, radius: float, seed: int = 1) -> Codebook:
    m = len(keys)
    return Codebook(keys, 3 * rand(m, d_out, seed=seed), torch.full((m,), radius), torch.arange(m))


def inputs(lm: LM, path: str, text: str) -> Tensor:
    """What a module reads at every token of a text, `[T, d_in]`."""
    seen: list[Tensor] = []
    handle = lm.model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    logits(lm, text)
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1]).float()


def logits(lm: LM, text: str = TEXT, n_rows: int = 1) -> Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([lm.encode(text)] * n_rows)).logits


def of_token(lm: LM, path: str, token: int, radius: float, seed: int = 1, text: str = TEXT) -> Delta:
    """A codebook with what the module reads at a token of a text."""
    key = inputs(lm, path, text)[token][None]
    return Delta({path: book(key, weight(lm.model.get_submodule(path)).shape[0], radius, seed)})


@pytest.mark.parametrize("scale", [0.1, 1.0, 300.0])
def test_look_up_is_the_plain_one(scale: float) -> None:
    keys = rand(40, 12) * scale
    queries = torch.cat([keys + 0.3 * rand(40, 12, seed=2), rand(200, 12, seed=3) * scale, keys])
    found = Codebook(
        keys, rand(40, 3), torch.rand(40, generator=torch.Generator().manual_seed(4)) * 2, torch.arange(40)
    )
    near, entry = found.look_up(queries.view(4, -1, 12))
    distances = (queries.double()[:, None] - keys.double()[None]).norm(dim=-1)
    least, at = distances.min(1)
    wanted = least <= found.radii[at]
    assert torch.equal(near.flatten(), wanted)
    assert torch.equal(entry.flatten()[wanted], at[wanted])
    assert 0 < int(wanted.sum()) < len(queries)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("role", ["down", "up"])
def test_only_tokens_near_a_key_change(kind: str, role: str) -> None:
    lm = tiny_lm(kind)
    family = lm.arch.family
    path = f"{family.layers}.2.{family.mlp_out if role == 'down' else family.mlp_in[-1]}"
    module = lm.model.get_submodule(path)
    plain, elsewhere = logits(lm), logits(lm, OTHER)
    delta = of_token(lm, path, -2, 1e-2)
    value = delta.of_kind(Codebook)[path].values[0]
    seen: list[Tensor] = []
    with edited(lm.model, delta):
        handle = module.register_forward_hook(lambda _, args, out: seen.append(out.clone()))
        now = logits(lm)
        handle.remove()
        assert torch.equal(seen[0].reshape(-1, len(value))[-2], value)
        assert torch.equal(now[0, :-2], plain[0, :-2])
        assert not torch.equal(now[0, -2], plain[0, -2])
        assert torch.equal(logits(lm, OTHER), elsewhere)
    assert torch.equal(logits(lm), plain)
    assert not any(m._forward_hooks for m in lm.model.modules())


def test_the_newest_of_one_key_counts() -> None:
    keys = rand(3, 5)
    one, two = book(keys, 4, 1.0), book(keys[1:2], 4, 0.5, seed=7)
    both = Codebook.add([one, two])
    assert torch.equal(both.keys, keys)
    assert torch.equal(both.values[1], two.values[0])
    assert both.radii.tolist() == [1.0, 0.5, 1.0]
    parts = [one, two, book(rand(2, 5, seed=9), 4, 2.0), one]
    whole, nested = Codebook.add(parts), Codebook.add([Codebook.add(parts[:2]), Codebook.add(parts[2:])])
    assert all(torch.equal(whole.tensors()[name], tensor) for name, tensor in nested.tensors().items())


def test_one_after_another_is_the_sum() -> None:
    lm = tiny_lm("llama")
    path = lm.arch.path("mlp_out", 2)
    d_out, d_in = weight(lm.model.get_submodule(path)).shape
    deltas = [of_token(lm, path, token, 1e-2, seed=token) for token in (2, 3, 2)]
    deltas.append(Delta({path: Factors(rand(d_out, 1), rand(1, d_in))}))
    weights = Weights(lm.model)
    for delta in deltas:
        weights.add(delta)
    want = logits(lm)
    weights.restore()
    with edited(lm.model, Delta.concat(deltas)):
        assert torch.equal(logits(lm), want)
    assert len(Delta.concat(deltas).of_kind(Codebook)[path].keys) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lanes(dtype: torch.dtype) -> None:
    lm = tiny_lm("gpt2", dtype=dtype)
    path = lm.arch.path("mlp_out", 2)
    plain = logits(lm, n_rows=4)
    deltas = [of_token(lm, path, 3, 1e-1), Delta(), of_token(lm, path, 1, 1e-1, seed=5)]
    lanes = [2, -1, 0, 1]
    with BatchedDeltas(lm.model, deltas).rows(torch.tensor(lanes)):
        found = logits(lm, n_rows=4)
    assert torch.equal(found[1], plain[1])
    assert torch.equal(found[3], plain[3])
    for row in (0, 2):
        with edited(lm.model, deltas[lanes[row]]):
            assert torch.equal(found[row], logits(lm, n_rows=4)[row])
        assert not torch.equal(found[row], plain[row])


def test_a_cache_changes_nothing() -> None:
    lm = tiny_lm("llama")
    path, ids = lm.arch.path("mlp_out", 2), torch.tensor([lm.encode(TEXT)])
    with edited(lm.model, of_token(lm, path, 3, 1e-1)), torch.no_grad():
        whole, cache, parts = logits(lm), None, []
        for i in range(ids.shape[1]):
            out = lm.model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)


def test_files_and_checkpoints_hold_it(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    path = lm.arch.path("mlp_out", 2)
    delta = of_token(lm, path, 2, 0.5)
    save_delta(tmp_path, delta, {"model_fingerprint": lm.fingerprint})
    for found in (load_delta(tmp_path, lm)[0], unpack(pack(delta))):
        mine, theirs = (d.of_kind(Codebook)[path].tensors() for d in (found, delta))
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_what_does_not_fit_is_refused() -> None:
    parts: dict[str, Any] = {
        "keys": torch.zeros(2, 3), "values": torch.zeros(2, 4), "radii": torch.ones(2), "labels": torch.zeros(2).long()
    }  # fmt: skip
    for name, wrong in (
        ("values", torch.zeros(3, 4)),
        ("keys", torch.zeros(3)),
        ("radii", -torch.ones(2)),
        ("radii", torch.full((2,), torch.nan)),
        ("labels", torch.zeros(2)),
    ):
        with pytest.raises(ValueError, match="codebook"):
            Codebook(**(parts | {name: wrong}))
    lm = tiny_lm("llama")
    with (
        pytest.raises(KeditError, match="codebook"),
        edited(lm.model, Delta({lm.arch.path("mlp_out", 1): Codebook(**parts)})),
    ):
        pass
