"""REP's pathway: which tokens it moves, and that nothing of it is left behind."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kedit.delta import pathway as pathway_module
from kedit.delta.apply import Weights, edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.pathway import Pathway, PathwayRouter
from kedit.delta.pathways import Pathways
from kedit.delta.serialization import load_delta, save_delta
from kedit.errors import KeditError
from kedit.model.architecture import weight
from kedit.model.lm import LM
from tests.support.tiny_models import tiny_lm
from tests.support.ways import both_ways  # noqa: F401 (every test runs in both)

D = 24
TEXT = "The capital of France is Paris"


def made(d: int = D, gate: str = "logistic", seed: int = 0, hidden: int = 5, size: float = 1.0) -> Pathway:
    """A random adapter; its gate is open for about half of all keys."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    parts: dict[str, Tensor] = {"down": rand(3, d) / math.sqrt(d), "up": rand(d, 3) * size}
    if gate == "mlp":
        parts |= {"hidden": rand(hidden, d) / math.sqrt(d), "hidden_bias": rand(hidden), "read": 3 * rand(hidden)}
    if gate == "logistic":
        parts |= {"read": 3 * rand(d), "offset": rand(d)}
    if gate != "none":
        parts |= {"bias": rand(), "threshold": rand() / 2}
    return Pathway(**parts)


def tokens(lm: LM, text: str = TEXT) -> Tensor:
    return torch.tensor([lm.encode(text)])


def inputs(lm: LM, layer: int, prepend: bool) -> Tensor:
    """Input of a layer's `mlp_out` for `TEXT`, `[T, D]`: before any pathway that is there, or after it."""
    seen: list[Tensor] = []
    module = lm.arch.module(lm.model, "mlp_out", layer)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]), prepend=prepend)
    with torch.no_grad():
        lm.model(tokens(lm))
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


def logits(lm: LM) -> Tensor:
    with torch.no_grad():
        return lm.model(tokens(lm)).logits[0]


def gate_at(key: Tensor, others: Tensor) -> dict[str, Tensor]:
    """A gate that is open for `key` and for no other."""
    unit = key / key.norm()
    nearest = float((others / others.norm(dim=-1, keepdim=True) @ unit).max())
    assert nearest < 0.999
    return {"read": unit, "bias": torch.tensor(0.0), "threshold": torch.tensor((1 + nearest) / 2)}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_bit_changes_before_training_or_behind_a_closed_gate(kind: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(kind, dtype=dtype)
    path, d = lm.arch.path("mlp_out", 1), weight(lm.arch.module(lm.model, "mlp_out", 1)).shape[1]
    before = logits(lm)
    fresh = Pathway(made(d, "none").down, torch.zeros(d, 3))
    gate = {"read": torch.zeros(d), "bias": torch.tensor(0.0), "threshold": torch.tensor(0.0)}
    shut = replace(made(d, "none"), **gate)
    for quiet in (fresh, shut):
        with edited(lm.model, Delta({path: Pathways((quiet,))})):
            assert torch.equal(logits(lm), before)
    with edited(lm.model, Delta({path: Pathways((made(d, "none"),))})):
        assert not torch.equal(logits(lm), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_open_tokens_move(dtype: torch.dtype, both_ways: bool) -> None:  # noqa: F811 (the fixture itself)
    lm = tiny_lm("llama", dtype=dtype)
    native, before, t = inputs(lm, 1, True), logits(lm), 4
    keys = native.float()
    adapter = made(keys.shape[1], "none", size=3.0)
    adapter = Pathway(adapter.down, adapter.up, **gate_at(keys[t], torch.cat([keys[:t], keys[t + 1 :]])))
    with edited(lm.model, Delta({lm.arch.path("mlp_out", 1): Pathways((adapter,))})):
        assert torch.equal(inputs(lm, 1, True), native)
        moved, after = inputs(lm, 1, False), logits(lm)
    rest = [i for i in range(len(keys)) if i != t]
    assert torch.equal(moved[rest], native[rest])
    want = (keys[t] + adapter.move(keys[t : t + 1])[0]).to(dtype)
    assert torch.equal(moved[t], want) or (both_ways and torch.allclose(moved[t], want, rtol=1e-5, atol=1e-5))
    assert not torch.equal(moved[t], native[t])
    assert torch.equal(after[:t], before[:t])
    assert not torch.equal(after[t], before[t])


def naive(pathways: list[Pathway], keys: Tensor) -> tuple[Tensor, list[int]]:
    """One key and one gate at a time, and which of them acted (-1: none)."""
    rows, chosen = [], []
    for key in keys:
        best, acting = 0.7 * math.log(len(pathways)), -1
        for j, p in enumerate(pathways):
            margin = float(p.margin(key[None]))
            if margin > best:
                best, acting = margin, j
        rows.append(key if acting < 0 else key + pathways[acting].move(key[None])[0])
        chosen.append(acting)
    return torch.stack(rows), chosen


@pytest.mark.parametrize(
    ("gates", "stacked"),
    [
        (["mlp"] * 4, True),
        (["logistic"] * 4, True),
        (["mlp", "logistic", "mlp", "logistic"], False),
        (["mlp", "wide", "mlp", "wide"], False),
    ],
)
@pytest.mark.parametrize("chunk", [1, 100, 2**25])
def test_a_token_goes_to_the_widest_open_gate(
    gates: list[str], stacked: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = {"wide": 9}
    pathways = [made(gate={"wide": "mlp"}.get(g, g), seed=i, hidden=width.get(g, 5)) for i, g in enumerate(gates)]
    keys = torch.randn(2, 160, D, generator=torch.Generator().manual_seed(9))
    monkeypatch.setattr(pathway_module, "CHUNK", chunk)
    bank = PathwayRouter(pathways)
    assert (bank._linear is not None or bank._hidden is not None) == stacked
    want, chosen = naive(pathways, keys.flatten(0, 1))
    assert set(chosen) == {-1, 0, 1, 2, 3}
    got = bank(keys)
    assert got.shape == keys.shape
    torch.testing.assert_close(got.flatten(0, 1), want, atol=1e-5, rtol=1e-5)
    closed = [i for i, j in enumerate(chosen) if j < 0]
    assert torch.equal(got.flatten(0, 1)[closed], keys.flatten(0, 1)[closed])


def test_the_bar_rises_with_the_number_of_gates() -> None:
    """One gate alone acts where its margin is above 0; beside others that are shut it must be open wider."""
    mine, keys = made(), torch.randn(200, D, generator=torch.Generator().manual_seed(4))
    shut = [replace(made(seed=i), bias=torch.tensor(-1e6)) for i in range(1, 50)]
    margin = mine.margin(keys)
    for others, bar in (([], 0.0), (shut[:9], 0.7 * math.log(10)), (shut, 0.7 * math.log(50))):
        acted = (PathwayRouter([*others, mine])(keys) != keys).any(1)
        assert torch.equal(acted, margin > bar)
        assert 0 < acted.sum() < (margin > bar - 0.5).sum()


def test_without_a_gate_every_token_moves_and_nothing_else_acts() -> None:
    pathways = [made(gate="logistic"), made(gate="none", seed=1)]
    keys = torch.randn(20, D)
    torch.testing.assert_close(PathwayRouter(pathways)(keys), keys + pathways[1].move(keys))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_moved_in_float32(dtype: torch.dtype) -> None:
    pathways = [made(gate="mlp", seed=i) for i in range(2)]
    keys = torch.randn(60, D, generator=torch.Generator().manual_seed(2)).to(dtype)
    want, chosen = naive(pathways, keys.float())
    got = PathwayRouter(pathways)(keys)
    assert got.dtype == dtype
    closed = [i for i, j in enumerate(chosen) if j < 0]
    assert 10 < len(closed) < 50
    assert torch.equal(got[closed], keys[closed])
    torch.testing.assert_close(got, want.to(dtype), atol=1e-6, rtol=1e-2 if dtype == torch.bfloat16 else 1e-3)


def deltas_of(lm: LM) -> list[Delta]:
    """Weights and pathways; pathways alone; weights alone; two layers."""
    paths = [lm.arch.path("mlp_out", i) for i in (1, 2)]
    o, d = weight(lm.arch.module(lm.model, "mlp_out", 1)).shape
    g = torch.Generator().manual_seed(4)
    changes = [{p: Factors(torch.randn(o, 1, generator=g), torch.randn(1, d, generator=g))} for p in paths]
    return [
        Delta(changes[0], {paths[0]: Pathways((made(d, "logistic", 1), made(d, "mlp", 2)))}),
        Delta({paths[0]: Pathways((replace(made(d, "logistic", 3), bias=torch.tensor(0.6)),))}),
        Delta(changes[1]),
        Delta(
            changes[0] | changes[1],
            {paths[0]: Pathways((made(d, "none", 4),)), paths[1]: Pathways((made(d, "mlp", 5),))},
        ),
    ]


def still(lm: LM, before: dict[str, Tensor]) -> bool:
    """Weights as before, and no hook anywhere."""
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())
    return not hooks and all(torch.equal(before[name], value) for name, value in lm.model.state_dict().items())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_lanes_equal_edited_models(kind: str) -> None:
    lm = tiny_lm(kind)
    deltas, before = deltas_of(lm), {name: value.clone() for name, value in lm.model.state_dict().items()}
    lanes = [1, -1, 0, 3, 2, 1]
    with torch.no_grad(), BatchedDeltas(lm.model, deltas).rows(torch.tensor(lanes)):
        got = lm.model(tokens(lm).expand(len(lanes), -1)).logits
    plain = logits(lm)
    for row, lane in enumerate(lanes):
        with edited(lm.model, *([deltas[lane]] if lane >= 0 else [])):
            want = logits(lm)
        torch.testing.assert_close(got[row], want, atol=1e-3, rtol=1e-3)
        assert ((want - plain).abs().max() > 0.1) == (lane >= 0)
    assert still(lm, before)


def test_nothing_is_left_behind() -> None:
    lm = tiny_lm("llama")
    deltas, before = deltas_of(lm), {name: value.clone() for name, value in lm.model.state_dict().items()}
    with edited(lm.model, deltas[0]):
        outer = logits(lm)
        with edited(lm.model, deltas[3]):
            assert not torch.equal(logits(lm), outer)
        assert torch.equal(logits(lm), outer)
    assert still(lm, before)
    with pytest.raises(ZeroDivisionError), edited(lm.model, *deltas):
        raise ZeroDivisionError
    assert still(lm, before)


def test_concat_lines_pathways_up() -> None:
    """Many deltas written one after the other are one bank, as their concatenation is."""
    lm = tiny_lm("llama")
    deltas = deltas_of(lm)
    one, two = (lm.arch.path("mlp_out", i) for i in (1, 2))
    joined = Delta.concat(deltas)
    lined_up, *own = [{path: found.adapters for path, found in d.of_kind(Pathways).items()} for d in [joined, *deltas]]
    assert lined_up[one] == (*own[0][one], *own[1][one], *own[3][one])
    assert lined_up[two] == own[3][two]
    with edited(lm.model, *deltas):
        want = logits(lm)
    with edited(lm.model, joined):
        torch.testing.assert_close(logits(lm), want, atol=1e-3, rtol=1e-3)
    adapters = [Delta(delta.of_kind(Pathways)) for delta in deltas]
    with edited(lm.model, *adapters):
        want = logits(lm)
    with edited(lm.model, Delta.concat(adapters)):
        assert torch.equal(logits(lm), want)


def test_saved_pathways_come_back(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    delta = Delta.concat(deltas_of(lm))
    save_delta(tmp_path, delta, {"model_fingerprint": lm.fingerprint})
    loaded, _ = load_delta(tmp_path, lm)
    assert loaded.of_kind(Pathways).keys() == delta.of_kind(Pathways).keys()
    for path, pathways in delta.of_kind(Pathways).items():
        found = loaded.of_kind(Pathways)[path].adapters
        assert len(found) == len(pathways.adapters)
        for mine, theirs in zip(pathways.adapters, found, strict=True):
            assert mine.tensors().keys() == theirs.tensors().keys()
            assert all(torch.equal(tensor, theirs.tensors()[name]) for name, tensor in mine.tensors().items())
    with edited(lm.model, delta):
        want = logits(lm)
    with edited(lm.model, loaded):
        assert torch.equal(logits(lm), want)


def test_a_pathway_of_another_model_is_refused() -> None:
    lm = tiny_lm("llama")
    path = lm.arch.path("mlp_out", 1)
    module: nn.Module = lm.arch.module(lm.model, "mlp_out", 1)
    d = weight(module).shape[1]
    for delta, message in (
        (Delta({path: Pathways((made(d), made(d + 1)))}), r"pathway of another width than .* \(80\)"),
        (Delta({"model.nowhere": Pathways((made(d),))}), "'model.nowhere', which this model does not have"),
    ):
        with pytest.raises(KeditError, match=message):
            Weights(lm.model).add(delta)
        with pytest.raises(KeditError, match=message):
            BatchedDeltas(lm.model, [delta])
    assert not module._forward_pre_hooks
