"""Identities of baselines 1.19 in float64: items 1 (ROME), 2 (R-ROME), 3 to 5 (EMMET, MEMIT), 12 (edit and restore)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit.covariance import Covariance
from kedit.delta.apply import Weights, edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.serialization import load_delta, save_delta
from kedit.errors import KeditError
from kedit.keyvalue import solvers
from kedit.model.architecture import weight
from tests.support.device import DEVICE
from tests.support.tiny_models import tiny_lm

D_OUT, D_IN = 7, 19


@pytest.fixture
def toy() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    spread = rand(D_IN, 4 * D_IN)
    return {
        "w": rand(D_OUT, D_IN),
        "b": rand(D_OUT),
        "keys": rand(5, D_IN),
        "v_star": rand(D_OUT),
        "c": spread @ spread.T / (4 * D_IN),
    }


def test_rome_maps_the_bare_key_to_v_star(toy: dict[str, Tensor]) -> None:
    keys, k_mean = toy["keys"], toy["keys"].mean(0)
    values = keys @ toy["w"].T + toy["b"]
    factors = solvers.rome(keys[0], values[0], toy["v_star"], torch.linalg.solve(toy["c"], k_mean))
    edited_w = toy["w"] + factors.dense()
    assert (edited_w @ keys[0] + toy["b"] - toy["v_star"]).abs().max() < 1e-12
    assert (edited_w @ k_mean + toy["b"] - toy["v_star"]).abs().max() > 1e-2  # the published asymmetry
    assert int(torch.linalg.matrix_rank(factors.dense())) == 1
    for scale in (1e-3, 1e3):  # of the direction, and so of C
        again = solvers.rome(keys[0], values[0], toy["v_star"], torch.linalg.solve(toy["c"] * scale, k_mean))
        torch.testing.assert_close(again.dense(), factors.dense(), atol=1e-12, rtol=1e-10)


def test_rome_is_the_smallest_change_that_maps_the_key(toy: dict[str, Tensor]) -> None:
    """With k0 = k_mean, Delta minimises tr(Delta C Delta^T) under Delta k = r: Delta C is orthogonal to null(k)."""
    k = toy["keys"][0]
    value = toy["w"] @ k + toy["b"]
    delta = solvers.rome(k, value, toy["v_star"], torch.linalg.solve(toy["c"], k)).dense()
    null = torch.linalg.svd(k[None, :]).Vh[1:].T  # [d_in, d_in - 1]
    assert (delta @ toy["c"] @ null).abs().max() < 1e-12


def test_r_rome_maps_the_mean_key_to_v_star(toy: dict[str, Tensor]) -> None:
    keys, k_mean = toy["keys"], toy["keys"].mean(0)
    values = keys @ toy["w"].T + toy["b"]
    direction = torch.linalg.solve(toy["c"], k_mean)
    delta = solvers.r_rome(k_mean, values.mean(0), toy["v_star"], direction).dense()
    assert ((toy["w"] + delta) @ k_mean + toy["b"] - toy["v_star"]).abs().max() < 1e-12
    # EMMET with one key and no ridge: R (k^T C^-1 k)^-1 k^T C^-1
    c_inv = torch.linalg.inv(toy["c"])
    residual = toy["v_star"] - values.mean(0)
    emmet = torch.outer(residual, k_mean @ c_inv) / (k_mean @ c_inv @ k_mean)
    torch.testing.assert_close(delta, emmet, atol=1e-12, rtol=1e-9)


def test_a_key_across_the_direction_cannot_be_solved() -> None:
    k, u = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    with pytest.raises(KeditError, match=r"k \. u"):
        solvers.rome(k, torch.zeros(2), torch.ones(2), u)


@pytest.fixture
def system(toy: dict[str, Tensor]) -> dict[str, Tensor]:
    """Five requests: keys K `[D_IN, 5]` and residuals R `[D_OUT, 5]` in columns, as the papers write them."""
    g = torch.Generator().manual_seed(2)
    return {"k": toy["keys"].T, "r": torch.randn(D_OUT, 5, generator=g, dtype=torch.float64), "c": toy["c"]}


def covariance(c: Tensor) -> Covariance:
    return Covariance(c, count=10**6, ridge=0.0)


def memit(system: dict[str, Tensor], lam: float) -> Tensor:
    return solvers.memit(system["k"].T, system["r"].T, covariance(system["c"]), lam).dense()


def emmet(system: dict[str, Tensor], scale: float, ridge: float) -> Tensor:
    return solvers.emmet(system["k"].T, system["r"].T, covariance(system["c"]), scale, ridge).dense()


def test_emmet_meets_its_constraint_with_the_smallest_change(system: dict[str, Tensor]) -> None:
    delta = emmet(system, 1.0, 0.0)
    torch.testing.assert_close(delta @ system["k"], system["r"], atol=1e-11, rtol=0)
    null = torch.linalg.svd(system["k"].T).Vh[5:].T  # K^T null = 0
    assert (delta @ system["c"] @ null).abs().max() < 1e-11
    c_inv = torch.linalg.inv(system["c"])
    dense = system["r"] @ torch.linalg.inv(system["k"].T @ c_inv @ system["k"]) @ system["k"].T @ c_inv
    torch.testing.assert_close(delta, dense, atol=1e-11, rtol=1e-9)
    for scale in (1e-4, 1e4):
        torch.testing.assert_close(emmet(system, scale, 0.0), delta, atol=1e-10, rtol=1e-9)
    scaled = system | {"c": 30.0 * system["c"]}
    torch.testing.assert_close(emmet(scaled, 1.0, 0.0), delta, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("lam", [1e-3, 1.0, 50.0])
def test_memit_solves_its_normal_equations(system: dict[str, Tensor], lam: float) -> None:
    k, r, c = system["k"], system["r"], system["c"]
    delta = memit(system, lam)
    assert (lam * delta @ c + (delta @ k - r) @ k.T).abs().max() < 1e-10
    torch.testing.assert_close(delta, r @ k.T @ torch.linalg.inv(lam * c + k @ k.T), atol=1e-10, rtol=1e-8)
    gram = k.T @ torch.linalg.inv(c) @ k
    left_over = lam * r @ torch.linalg.inv(lam * torch.eye(5, dtype=k.dtype) + gram)
    torch.testing.assert_close(r - delta @ k, left_over, atol=1e-10, rtol=1e-8)


def test_memit_between_emmet_and_nothing(system: dict[str, Tensor]) -> None:
    limit = emmet(system, 1.0, 0.0)
    gaps = [float((memit(system, lam) - limit).norm() / limit.norm()) for lam in (1e-9, 1e-6, 1e-3)]
    assert gaps[0] < 1e-7
    assert gaps[0] < gaps[1] < gaps[2]
    assert memit(system, 1e9).norm() < 1e-6 * limit.norm()
    one = system | {"k": system["k"][:, :1], "r": system["r"][:, :1]}
    q = (
        float(one["k"].T @ torch.linalg.inv(system["c"]) @ one["k"]) / 5.0
    )  # one key alone gets q / (1 + q) of its residual
    torch.testing.assert_close(memit(one, 5.0) @ one["k"], one["r"] * q / (1 + q), atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(("scale", "ridge"), [(1000.0, 0.1), (0.3, 2.0)])
def test_emmet_with_a_ridge_is_memit(system: dict[str, Tensor], n: int, scale: float, ridge: float) -> None:
    part = system | {"k": system["k"][:, :n], "r": system["r"][:, :n]}
    torch.testing.assert_close(emmet(part, scale, ridge), memit(part, scale * ridge), atol=1e-12, rtol=1e-9)
    assert (emmet(part, scale, ridge) - memit(part, scale)).abs().max() > 1e-6


def test_dependent_keys_have_no_equality_constraint(system: dict[str, Tensor]) -> None:
    twice = system["k"].clone()
    twice[:, 3] = -2.0 * twice[:, 1] + 1e-7 * twice[:, 0]  # alike to the float32 rounding of the model's forward
    with pytest.raises(KeditError, match=r"numbers 2 and 4;.*emmet_lambda above 0"):
        emmet(system | {"k": twice}, 1.0, 0.0)
    assert emmet(system | {"k": twice}, 1.0, 0.1).isfinite().all()
    assert solvers.emmet(twice.T[:1], system["r"].T[:1], covariance(system["c"]), 1.0, 0.0).rank == 1
    many = torch.randn(D_IN + 1, D_IN, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with pytest.raises(KeditError, match="linearly dependent"):
        solvers.emmet(many, torch.ones(D_IN + 1, D_OUT).double(), covariance(system["c"]), 1.0, 0.0)


def random_delta(model: nn.Module, paths: list[str], seed: int = 0, rank: int = 1) -> Delta:
    g = torch.Generator().manual_seed(seed)
    named = dict(model.named_modules())
    shapes = {path: weight(named[path]).shape for path in paths}
    return Delta(
        {
            p: Factors(torch.randn(o, rank, generator=g), torch.randn(rank, i, generator=g))
            for p, (o, i) in shapes.items()
        }
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edited_restores_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(kind, dtype=dtype)
    path = lm.arch.path("mlp_out", 1)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    ids = torch.tensor([lm.encode("The capital of France is")])
    logits = lm.model(ids).logits

    def unchanged() -> bool:
        return all(torch.equal(before[name], value) for name, value in lm.model.state_dict().items())

    with edited(lm.model, random_delta(lm.model, [path])):
        assert not torch.equal(lm.model(ids).logits, logits)
        with edited(lm.model, random_delta(lm.model, [path], seed=2)):
            pass
        assert not unchanged()
    assert unchanged()
    with pytest.raises(ZeroDivisionError), edited(lm.model, random_delta(lm.model, [path])):
        raise ZeroDivisionError
    assert unchanged()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_written_weight_is_w_plus_delta(kind: str) -> None:
    lm = tiny_lm(kind)
    path = lm.arch.path("mlp_out", 2)
    w = weight(lm.arch.module(lm.model, "mlp_out", 2))
    want = w.double() + random_delta(lm.model, [path], rank=3).of_kind(Factors)[path].dense().double()
    with edited(lm.model, random_delta(lm.model, [path], rank=3)):
        torch.testing.assert_close(w.double(), want, atol=1e-5, rtol=1e-5)


def test_small_changes_add_up_in_half_precision() -> None:
    """A bfloat16 weight near 1 cannot hold a change of 1e-4; 200 of them must still arrive."""
    lm = tiny_lm("llama", dtype=torch.bfloat16)
    path = lm.arch.path("mlp_out", 0)
    w = weight(lm.arch.module(lm.model, "mlp_out", 0))
    with torch.no_grad():
        w.fill_(1.0)
    step = Delta({path: Factors(torch.full((w.shape[0], 1), 1e-4), torch.ones(1, w.shape[1]))})
    weights = Weights(lm.model)
    for _ in range(200):
        weights.add(step)
    assert abs(float(w.float().mean()) - 1.02) < 4e-3
    weights.restore()
    assert bool((w == 1.0).all())


def test_save_and_load_commute_with_applying(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    delta = random_delta(lm.model, [lm.arch.path("mlp_out", 1), lm.arch.path("mlp_out", 2)], rank=2)
    save_delta(tmp_path / "d", delta, {"model": lm.name, "model_fingerprint": lm.fingerprint, "method": "ROME"})
    loaded, card = load_delta(tmp_path / "d", lm)
    assert card["method"] == "ROME"
    assert loaded.of_kind(Factors).keys() == delta.of_kind(Factors).keys()
    for path, factors in delta.of_kind(Factors).items():
        assert torch.equal(loaded.of_kind(Factors)[path].left, factors.left)
        assert torch.equal(loaded.of_kind(Factors)[path].right, factors.right)
    with edited(lm.model, delta):
        want = {name: value.clone() for name, value in lm.model.state_dict().items()}
    with edited(lm.model, loaded):
        assert all(torch.equal(want[name], value) for name, value in lm.model.state_dict().items())


def test_a_delta_of_another_model_is_refused(tmp_path: Path) -> None:
    lm, other = tiny_lm("gpt2"), tiny_lm("gpt2", seed=1)
    delta = random_delta(lm.model, [lm.arch.path("mlp_out", 1)])
    save_delta(tmp_path, delta, {"model": "first", "model_fingerprint": lm.fingerprint})
    with pytest.raises(KeditError, match="of another model, first"):
        load_delta(tmp_path, other)
    with pytest.raises(KeditError, match="of another model"), edited(tiny_lm("llama").model, delta):
        pass
    (tmp_path / "delta.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(KeditError, match="damaged"):
        load_delta(tmp_path, lm)


def test_a_delta_with_nan_is_not_written() -> None:
    lm = tiny_lm("llama")
    path = lm.arch.path("mlp_out", 1)
    good = random_delta(lm.model, [path]).of_kind(Factors)[path]
    before = weight(lm.arch.module(lm.model, "mlp_out", 1)).clone()
    weights = Weights(lm.model)
    with pytest.raises(KeditError, match="not finite"):
        weights.add(Delta({path: Factors(good.left * float("nan"), good.right)}))
    assert torch.equal(before, weight(lm.arch.module(lm.model, "mlp_out", 1)))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "gptj"])
def test_lanes_equal_edited_weights(kind: str) -> None:
    """Row b of a batch under lane b equals the model whose weights carry delta b; -1 is the unedited model."""
    lm = tiny_lm(kind)
    paths = [lm.arch.path("mlp_out", i) for i in (1, 2)]
    deltas = [random_delta(lm.model, paths[: 1 + i % 2], seed=i, rank=1 + i) for i in range(3)]
    bank = BatchedDeltas(lm.model, deltas)
    ids = torch.tensor([lm.encode("The capital of France is Paris")])
    rows = torch.tensor([1, -1, 0, 2, 1])
    with torch.no_grad(), bank.rows(rows):
        got = lm.model(ids.expand(5, -1)).logits
    with torch.no_grad():
        for row, lane in enumerate(rows.tolist()):
            with edited(lm.model, *([deltas[lane]] if lane >= 0 else [])):
                torch.testing.assert_close(got[row], lm.model(ids).logits[0], atol=1e-3, rtol=1e-3)
    assert all(not module._forward_hooks for module in lm.model.modules())


def test_conv1d_and_linear_are_told_apart_when_square() -> None:
    conv, linear = Conv1D(4, 4).to(DEVICE), nn.Linear(4, 4).to(DEVICE)
    assert torch.equal(weight(conv), conv.weight.T)
    assert torch.equal(weight(linear), linear.weight)


def test_concat_is_the_sum() -> None:
    lm = tiny_lm("llama")
    path = lm.arch.path("mlp_out", 1)
    parts = [random_delta(lm.model, [path], seed=i) for i in range(3)]
    total = sum(part.of_kind(Factors)[path].dense() for part in parts)
    joined = Delta.concat(parts)
    torch.testing.assert_close(joined.of_kind(Factors)[path].dense(), total, atol=1e-5, rtol=1e-5)
    assert abs(joined.norm() - float(torch.linalg.norm(total))) < 1e-3
