"""Slices and biases: what they change, that it costs memory for the touched lines alone, and that all comes back."""

from __future__ import annotations

import io
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kedit.delta.apply import Weights, edited
from kedit.delta.biases import BiasChange
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.pathway import Pathway
from kedit.delta.pathways import Pathways
from kedit.delta.serialization import load_delta, pack, save_delta, unpack
from kedit.delta.slices import Slices
from kedit.errors import KeditError
from kedit.model.architecture import weight
from kedit.model.lm import LM
from tests.support.tiny_models import tiny_lm

ROWS, COLUMNS = 0, 1
TEXT = "The capital of France is Paris"
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slices_of(shape: tuple[int, int], axis: int, index: list[int], seed: int = 0, size: float = 0.5) -> Slices:
    return Slices(
        torch.tensor(index, dtype=torch.int64), size * rand(len(index), shape[1 - axis], seed=seed), axis, shape
    )


def key_path(lm: LM, layer: int) -> str:
    """The matrix whose rows are the key nodes."""
    return f"{lm.arch.family.layers}.{layer}.{lm.arch.family.mlp_in[-1]}"


def shape_of(lm: LM, path: str) -> tuple[int, int]:
    d_out, d_in = weight(lm.model.get_submodule(path)).shape
    return d_out, d_in


def has_bias(lm: LM, path: str) -> bool:
    return lm.model.get_submodule(path).bias is not None


def pac_delta(lm: LM, index: list[int], seed: int = 0, layers: tuple[int, ...] = (0, 1, 2, 3)) -> Delta:
    """What PAC changes: rows of keys, columns of values, and biases where there are some; in every layer."""
    slices, biases = {}, {}
    for layer in layers:
        for path, axis in ((key_path(lm, layer), ROWS), (lm.arch.path("mlp_out", layer), COLUMNS)):
            shape = shape_of(lm, path)
            slices[path] = slices_of(shape, axis, [i + layer for i in index], seed=seed + 10 * layer)
            if has_bias(lm, path):
                biases[path] = BiasChange(0.3 * rand(shape[0], seed=seed + 1))
    return Delta(slices, biases)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Every bit as before, and no hook anywhere."""
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return not hooks and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def logits(lm: LM, rows: int = 1) -> Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([lm.encode(TEXT)]).expand(rows, -1)).logits


# -- the dataclass ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [ROWS, COLUMNS])
def test_dense_norm_and_inner_product(axis: int) -> None:
    s = slices_of((7, 5), axis, [0, 2, 4])
    want = torch.zeros(7, 5)
    for place, i in enumerate((0, 2, 4)):
        if axis == ROWS:
            want[i] = s.values[place]
        else:
            want[:, i] = s.values[place]
    assert torch.equal(s.dense(), want)
    assert s.square_norm() == pytest.approx(float(want.double().square().sum()), rel=1e-12)
    left, right = rand(7, 2, seed=1), rand(2, 5, seed=2)
    inner = float((want.double() * (left.double() @ right.double())).sum())
    assert s.inner(Factors(left, right)) == pytest.approx(inner, rel=1e-10)


@pytest.mark.parametrize("axis", [ROWS, COLUMNS])
def test_add_is_the_sum_in_the_order_given(axis: int) -> None:
    parts = [slices_of((40, 30), axis, index, seed) for seed, index in enumerate(([3, 9], [0, 9, 20], [9, 21], []))]
    total = Slices.add(parts)
    assert total.index.tolist() == [0, 3, 9, 20, 21]
    assert torch.equal(total.dense(), parts[0].dense() + parts[1].dense() + parts[2].dense())
    assert not torch.equal(total.dense(), parts[2].dense() + parts[1].dense() + parts[0].dense())  # it rounds


@pytest.mark.parametrize(
    ("index", "values", "axis", "message"),
    [
        (torch.tensor([2, 1]), torch.zeros(2, 5), ROWS, "not ascending"),
        (torch.tensor([1, 1]), torch.zeros(2, 5), ROWS, "not ascending"),
        (torch.tensor([1, 7]), torch.zeros(2, 5), ROWS, "1 to 7, of 7 lines"),
        (torch.tensor([-1, 6]), torch.zeros(2, 5), ROWS, "-1 to 6, of 7 lines"),
        (torch.tensor([0, 5]), torch.zeros(2, 7), COLUMNS, "0 to 5, of 5 lines"),
        (torch.tensor([0, 1], dtype=torch.int32), torch.zeros(2, 5), ROWS, "int32"),
        (torch.tensor([[0, 1]]), torch.zeros(2, 5), ROWS, "not int64"),
        (torch.tensor([0, 1]), torch.zeros(2, 7), ROWS, r"float32 \(2, 5\)"),
        (torch.tensor([0, 1]), torch.zeros(3, 5), ROWS, r"float32 \(2, 5\)"),
        (torch.tensor([0, 1]), torch.zeros(2, 5), COLUMNS, r"float32 \(2, 7\)"),
        (torch.tensor([0, 1]), torch.zeros(2, 5).double(), ROWS, "float64"),
        (torch.tensor([0, 1]), torch.zeros(2, 5), 2, "axis 2"),
    ],
)
def test_slices_that_do_not_fit_are_refused(index: Tensor, values: Tensor, axis: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Slices(index, values, axis, (7, 5))


def test_slices_of_different_kinds_have_no_sum() -> None:
    rows = slices_of((7, 5), ROWS, [1])
    for other in (slices_of((7, 5), COLUMNS, [1]), slices_of((8, 5), ROWS, [1])):
        with pytest.raises(ValueError, match="one axis and shape"):
            Slices.add([rows, other])
    with pytest.raises(ValueError, match="one axis and shape"):
        Slices.add([])


# -- written into weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_written_weight_is_w_plus_dense(kind: str, dtype: torch.dtype) -> None:
    """Added in float32 (float64), rounded once; no other entry of the model moves."""
    lm = tiny_lm(kind, dtype=dtype)
    before, delta = state(lm.model), pac_delta(lm, [1, 5, 17])
    assert len(delta.of_kind(Slices)) == 8
    assert len(delta.of_kind(BiasChange)) == (0 if kind == "llama" else 8)
    wide = torch.promote_types(dtype, torch.float32)
    wanted = dict(before)
    for path, s in delta.of_kind(Slices).items():
        change = s.dense().to(wide)
        stored = change.T if kind == "gpt2" else change  # Conv1D
        wanted[f"{path}.weight"] = (before[f"{path}.weight"].to(wide) + stored).to(dtype)
    for path, bias in delta.of_kind(BiasChange).items():
        wanted[f"{path}.bias"] = (before[f"{path}.bias"].to(wide) + bias.change.to(wide)).to(dtype)
    with edited(lm.model, delta):
        assert same(lm.model, wanted)
        assert not same(lm.model, before)
    assert same(lm.model, before)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_order_adds_up_and_comes_back(kind: str, dtype: torch.dtype) -> None:
    """Rows, columns that cross them, more rows, and factors of one matrix: as dense changes, bit for bit."""
    lm = tiny_lm(kind, dtype=dtype)
    path = lm.arch.path("mlp_out", 1)
    w, before, shape = weight(lm.model.get_submodule(path)), state(lm.model), shape_of(lm, path)
    original = w.clone()
    factors = Factors(0.1 * rand(shape[0], 2), rand(2, shape[1], seed=1))
    parts: list[tuple[Delta, Tensor]] = [(Delta({path: factors}), factors.dense())]
    for axis, index in ((ROWS, [2, 7]), (COLUMNS, [0, 7, 30]), (ROWS, [1, 7, 20]), (COLUMNS, [3, 7])):
        s = slices_of(shape, axis, index, seed=len(parts))
        parts.append((Delta({path: s}), s.dense()))
    weights = Weights(lm.model)
    for order in permutations(range(len(parts))):
        want = original.float()
        for i in order:
            delta, dense = parts[i]
            weights.add(delta)
            want = want + dense
            assert torch.equal(w, want.to(dtype)), order
        weights.restore()
        assert same(lm.model, before), order


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_and_slices_of_one_delta_add_up(dtype: torch.dtype) -> None:
    lm = tiny_lm("gpt2", dtype=dtype)
    path = lm.arch.path("mlp_out", 2)
    w, shape, before = weight(lm.model.get_submodule(path)), shape_of(lm, path), state(lm.model)
    factors, s, b = Factors(rand(shape[0], 1), rand(1, shape[1])), slices_of(shape, COLUMNS, [4, 8]), rand(shape[0])
    delta = Delta({path: factors}, {path: s}, {path: BiasChange(b)})
    want = (w.float() + factors.dense() + s.dense()).to(dtype)
    with edited(lm.model, delta):
        assert torch.equal(w, want)
    assert same(lm.model, before)
    dense = factors.dense() + s.dense()
    assert delta.norm() == pytest.approx(float(dense.double().square().sum() + b.double().square().sum()) ** 0.5)


@pytest.mark.parametrize("kind", ["llama", "gptj"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_left_behind(kind: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(kind, dtype=dtype)
    before, outer, inner = state(lm.model), pac_delta(lm, [1, 5]), pac_delta(lm, [5, 6], seed=3)
    shape = shape_of(lm, lm.arch.path("mlp_out", 1))
    dense = Delta({lm.arch.path("mlp_out", 1): Factors(rand(shape[0], 1), rand(1, shape[1]))})
    with edited(lm.model, outer):
        mine = state(lm.model)
        with edited(lm.model, inner, dense):
            assert not same(lm.model, mine)
        assert same(lm.model, mine)
        with edited(lm.model, dense, inner):
            assert not same(lm.model, mine)
        assert same(lm.model, mine)
    assert same(lm.model, before)
    with pytest.raises(ZeroDivisionError), edited(lm.model, outer, dense, inner):
        raise ZeroDivisionError
    assert same(lm.model, before)
    path = key_path(lm, 2)
    bad = Slices(torch.tensor([0]), torch.full((1, shape_of(lm, path)[1]), torch.nan), ROWS, shape_of(lm, path))
    with pytest.raises(KeditError, match="not finite"), edited(lm.model, outer, Delta({path: bad})):
        pass
    assert same(lm.model, before)


@pytest.mark.parametrize("axis", [ROWS, COLUMNS])
def test_small_changes_add_up_in_half_precision(axis: int) -> None:
    """A bfloat16 weight near 1 cannot hold a change of 1e-4; 200 of them must arrive, also of lines touched late."""
    lm = tiny_lm("gpt2", dtype=torch.bfloat16)
    path = lm.arch.path("mlp_out", 0)
    w, bias, shape = weight(lm.model.get_submodule(path)), lm.model.get_parameter(f"{path}.bias"), shape_of(lm, path)
    with torch.no_grad():
        w.fill_(1.0)
        bias.fill_(1.0)

    def step(index: list[int]) -> Delta:
        change = torch.full((len(index), shape[1 - axis]), 1e-4)
        return Delta(
            {path: Slices(torch.tensor(index), change, axis, shape)}, {path: BiasChange(torch.full_like(bias, 1e-4))}
        )

    weights = Weights(lm.model)
    for index in ([3, 5], [5, 8]):
        for _ in range(200):
            weights.add(step(index))
    lines = w if axis == ROWS else w.T
    for line, want in ((3, 1.02), (5, 1.04), (8, 1.02)):
        assert bool(((lines[line].float() - want).abs() < 4e-3).all())
    rest = [i for i in range(len(lines)) if i not in (3, 5, 8)]
    assert bool((lines[rest] == 1.0).all())
    assert bool(((bias.float() - 1.04).abs() < 4e-3).all())
    weights.restore()
    assert bool((w == 1.0).all())
    assert bool((bias == 1.0).all())


def test_a_sequence_is_the_float32_sum_rounded_once() -> None:
    """A changing choice of rows and columns, in half precision: no different from a dense float32 master."""
    lm = tiny_lm("llama", dtype=torch.bfloat16)
    before, paths = state(lm.model), (key_path(lm, 0), lm.arch.path("mlp_out", 0))
    masters = {path: weight(lm.model.get_submodule(path)).float() for path in paths}
    weights, g = Weights(lm.model), torch.Generator().manual_seed(5)
    for edit in range(30):
        slices = {}
        for axis, path in enumerate(paths):
            shape = shape_of(lm, path)
            index = torch.randperm(shape[axis], generator=g)[:4].sort().values.tolist()
            slices[path] = slices_of(shape, axis, index, seed=edit, size=1e-3)
            masters[path] += slices[path].dense()
        weights.add(Delta(slices))
    for path, master in masters.items():
        assert torch.equal(weight(lm.model.get_submodule(path)), master.bfloat16())
    weights.restore()
    assert same(lm.model, before)


def numbers_in(thing: Any) -> int:
    """Floating point numbers in all tensors that hang on an object."""
    if isinstance(thing, Tensor):
        return thing.untyped_storage().nbytes() // thing.element_size() if thing.is_floating_point() else 0
    if isinstance(thing, dict):
        return sum(numbers_in(part) for part in thing.values())
    if isinstance(thing, list | tuple):
        return sum(numbers_in(part) for part in thing)
    return numbers_in(vars(thing)) if hasattr(thing, "__dict__") else 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_touched_lines_are_kept(dtype: torch.dtype) -> None:
    """One old value per touched number, and a master of it in half precision; never a whole matrix."""
    lm = tiny_lm("llama", dtype=dtype)
    weights = Weights(lm.model)
    for delta in (pac_delta(lm, [1, 5]), pac_delta(lm, [1, 5], seed=1), pac_delta(lm, [5, 9])):
        weights.add(delta)
    kept = numbers_in([place._backups for place in weights._places.values()])
    touched = 4 * 2 * 3 * lm.d_model  # layers, two matrices, three lines
    assert kept == touched * (2 if dtype == torch.bfloat16 else 1)
    path = lm.arch.path("mlp_out", 1)
    d_out, d_in = shape_of(lm, path)
    weights.add(Delta({path: Factors(rand(d_out, 1), rand(1, d_in))}))
    more = numbers_in([place._backups for place in weights._places.values()]) - kept
    assert more == (2 * d_out * d_in - 3 * d_out if dtype == torch.bfloat16 else d_out * d_in)  # one master, the whole
    weights.restore()
    assert numbers_in([place._backups for place in weights._places.values()]) == 0


# -- refused ----------------------------------------------------------------------------------------------


def test_what_is_not_finite_is_not_written() -> None:
    lm = tiny_lm("gpt2")
    before, good = state(lm.model), pac_delta(lm, [1])
    path = lm.arch.path("mlp_out", 3)
    s, b = good.of_kind(Slices)[path], good.of_kind(BiasChange)[path]
    broken = Slices(s.index, s.values / 0.0, s.axis, s.shape)
    for delta in (
        Delta({**good.of_kind(Slices), path: broken}),
        Delta(good.of_kind(Slices), {path: BiasChange(b.change * torch.nan)}),
    ):
        with pytest.raises(KeditError, match=f"'{path}' holds values that are not finite"):
            Weights(lm.model).add(delta)
        assert same(lm.model, before)


def test_a_delta_of_another_model_is_refused() -> None:
    lm = tiny_lm("llama")
    path, before = lm.arch.path("mlp_out", 1), state(lm.model)
    d_out, d_in = shape_of(lm, path)
    good = pac_delta(lm, [1])
    for delta, message in (
        (Delta({path: slices_of((d_out, d_in + 1), ROWS, [0])}), rf"of shape \({d_out}, {d_in + 1}\), here it"),
        (Delta({path: slices_of((d_out + 1, d_in), COLUMNS, [0])}), rf"of shape \({d_out + 1}, {d_in}\), here"),
        (Delta({"model.nowhere": slices_of((d_out, d_in), ROWS, [0])}), "'model.nowhere', which this model"),
        (Delta({"model.nowhere": BiasChange(rand(d_out))}), "'model.nowhere', which this model does not have"),
        (Delta({path: BiasChange(rand(d_out))}), f"bias of '{path}' .* there is none: it is of another model"),
        (Delta({"model.norm": BiasChange(rand(d_out))}), "is not a linear map"),
    ):
        with pytest.raises(KeditError, match=message):
            Weights(lm.model).add(Delta({**good.of_kind(Slices), **delta.of_kind(Slices)}, delta.of_kind(BiasChange)))
        with pytest.raises(KeditError, match=message):
            BatchedDeltas(lm.model, [Delta(), delta])
        assert same(lm.model, before)
    other = tiny_lm("gpt2")
    path = other.arch.path("mlp_out", 1)
    with pytest.raises(KeditError, match=rf"bias of '{path}' of shape \(31,\), here it is \(32,\)"):
        Weights(other.model).add(Delta({path: BiasChange(rand(31))}))


# -- lanes ------------------------------------------------------------------------------------------------


def lane_deltas(lm: LM) -> list[Delta]:
    """Different lines and numbers of them; both axes; with factors, biases and a pathway; some layers alone."""
    path = lm.arch.path("mlp_out", 1)
    d_out, d_in = shape_of(lm, path)
    factors = {path: Factors(0.3 * rand(d_out, 2), 0.3 * rand(2, d_in, seed=1))}
    one, two = pac_delta(lm, [1, 5], seed=1), pac_delta(lm, [0, 2, 19], seed=2, layers=(1, 3))
    rows = slices_of((d_out, d_in), ROWS, [0, 9, 31], seed=5)
    pathway = Pathway(0.2 * rand(3, d_in), 0.2 * rand(d_in, 3, seed=3))
    return [
        one,
        Delta(factors, two.of_kind(Slices), two.of_kind(BiasChange)),
        Delta({path: rows}),
        Delta(),
        Delta(factors, {path: Pathways((pathway,))}, {path: rows}, one.of_kind(BiasChange)),
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj", "opt"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
def test_lanes_equal_edited_models(kind: str, dtype: torch.dtype, atol: float) -> None:
    """Row b under lane b is the model that carries delta b; -1 is the unedited model, to the bit."""
    lm = tiny_lm(kind, dtype=dtype)
    deltas, before = lane_deltas(lm), state(lm.model)
    if dtype == torch.float64:  # pathways move keys, and factors are multiplied out, in float32
        deltas = [Delta(delta.of_kind(Slices), delta.of_kind(BiasChange)) for delta in deltas]
    lanes = [1, -1, 0, 3, 2, 1, 4]
    with torch.no_grad(), BatchedDeltas(lm.model, deltas).rows(torch.tensor(lanes)):
        got = logits(lm, len(lanes))
    plain = logits(lm, len(lanes))
    for row, lane in enumerate(lanes):
        with edited(lm.model, *([deltas[lane]] if lane >= 0 else [])):
            want = logits(lm)[0]
        torch.testing.assert_close(got[row], want, atol=atol, rtol=atol)
        if lane in (-1, 3):
            assert torch.equal(got[row], plain[row])
        else:
            assert (want - plain[row]).abs().max() > 0.1
    assert same(lm.model, before)


def test_a_lane_of_a_half_precision_model_adds_in_float32() -> None:
    """The output of one map is that of its float32 copy, rounded: not a sum of rounded parts."""
    lm = tiny_lm("gptj", dtype=torch.bfloat16)
    for path, axis in ((key_path(lm, 1), ROWS), (lm.arch.path("mlp_out", 1), COLUMNS)):
        module, shape = lm.model.get_submodule(path), shape_of(lm, path)
        deltas = [
            Delta({path: slices_of(shape, axis, [2 + i, 9], i)}, {path: BiasChange(rand(shape[0]))}) for i in (0, 1)
        ]
        x, lanes = rand(3, 4, shape[1], seed=7).bfloat16(), torch.tensor([1, -1, 0])
        with torch.no_grad():
            plain = module(x)
            with BatchedDeltas(lm.model, deltas).rows(lanes):
                got, flat = module(x), module(x.flatten(0, 1))
        assert got.dtype == torch.bfloat16
        assert torch.equal(got.flatten(0, 1), flat)
        assert torch.equal(got[1], plain[1])
        for row, lane in ((0, 1), (2, 0)):
            slices, bias = deltas[lane].of_kind(Slices)[path], deltas[lane].of_kind(BiasChange)[path]
            extra = x[row].float() @ slices.dense().T + bias.change
            want = (plain[row].float() + extra).bfloat16()
            assert float((got[row] != want).float().mean()) < 0.02  # where float32 sums fall on two sides of a step


# -- sums, files, checkpoints -----------------------------------------------------------------------------


def equal(one: Delta, other: Delta) -> bool:
    """The same slices and biases, bit for bit."""
    if any(one.of_kind(kind).keys() != other.of_kind(kind).keys() for kind in (Slices, BiasChange)):
        return False
    for path, mine in one.of_kind(Slices).items():
        theirs = other.of_kind(Slices)[path]
        if (mine.axis, mine.shape) != (theirs.axis, theirs.shape):
            return False
        if not (torch.equal(mine.index, theirs.index) and torch.equal(mine.values, theirs.values)):
            return False
    return all(
        torch.equal(bias.change, other.of_kind(BiasChange)[path].change)
        for path, bias in one.of_kind(BiasChange).items()
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_concat_is_the_sum(kind: str) -> None:
    lm = tiny_lm(kind)
    path = lm.arch.path("mlp_out", 1)
    shape = shape_of(lm, path)
    factors = Delta({path: Factors(0.1 * rand(shape[0], 1), 0.1 * rand(1, shape[1]))})
    deltas = [pac_delta(lm, [1, 5]), factors, pac_delta(lm, [5, 9], seed=2), pac_delta(lm, [0], 3, layers=(1,))]
    joined = Delta.concat(deltas)
    assert joined.of_kind(Slices)[path].index.tolist() == [1, 2, 6, 10]
    with edited(lm.model, *deltas):
        want = state(lm.model)
    with edited(lm.model, joined):
        for name, value in lm.model.state_dict().items():
            torch.testing.assert_close(value, want[name], atol=1e-6, rtol=1e-6)
    square = sum(
        float((want[name].double() - value.double()).square().sum()) for name, value in state(lm.model).items()
    )
    assert joined.norm() == pytest.approx(square**0.5, rel=1e-5)


def test_rows_and_columns_of_a_matrix_are_not_joined() -> None:
    parts = [Delta({"m": slices_of((7, 5), axis, [1])}) for axis in (ROWS, COLUMNS)]
    with pytest.raises(KeditError, match=r"'m' cannot be joined .* both rows and columns"):
        Delta.concat(parts)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_saved_slices_come_back(kind: str, tmp_path: Path) -> None:
    lm = tiny_lm(kind)
    path = lm.arch.path("mlp_out", 1)
    d_out, d_in = shape_of(lm, path)
    index = torch.tensor([0, 4, 11])  # one tensor for all matrices, views of one tensor for all values
    many = rand(4, 3, d_out)
    slices = {lm.arch.path("mlp_out", i): Slices(index, many[i], COLUMNS, (d_out, d_in)) for i in range(4)}
    biased = pac_delta(lm, [2])
    rows = {key_path(lm, 0): biased.of_kind(Slices)[key_path(lm, 0)]}
    delta = Delta(
        {path: Factors(rand(d_out, 1), rand(1, d_in))},
        {path: Pathways((Pathway(rand(3, d_in), rand(d_in, 3), read=rand(d_in), bias=rand(), threshold=rand()),))},
        slices | rows,
        biased.of_kind(BiasChange),
    )
    save_delta(tmp_path, delta, {"model_fingerprint": lm.fingerprint})
    loaded, _ = load_delta(tmp_path, lm)
    assert equal(loaded, delta)
    assert torch.equal(loaded.of_kind(Factors)[path].left, delta.of_kind(Factors)[path].left)
    assert loaded.of_kind(Pathways)[path].tensors().keys() == delta.of_kind(Pathways)[path].tensors().keys()
    with edited(lm.model, delta):
        want = logits(lm)
    with edited(lm.model, loaded):
        assert torch.equal(logits(lm), want)
    assert not torch.equal(logits(lm), want)


def test_a_file_of_the_first_format_still_loads(tmp_path: Path) -> None:
    save_file({"m/left": torch.ones(3, 1), "m/right": torch.ones(1, 2)}, tmp_path / "delta.safetensors")
    (tmp_path / "card.json").write_text(json.dumps({"format": 1, "model_fingerprint": "x"}))
    delta, _ = load_delta(tmp_path)
    assert torch.equal(delta.of_kind(Factors)["m"].dense(), torch.ones(3, 2))
    assert (delta.of_kind(Slices), delta.of_kind(BiasChange)) == ({}, {})
    (tmp_path / "card.json").write_text(json.dumps({"format": 4}))
    with pytest.raises(KeditError, match="delta format 4; this kedit reads formats up to 3"):
        load_delta(tmp_path)


@pytest.mark.parametrize("lost", ["slices.layout", "slices.values", "slices.index", "left", "right"])
def test_a_file_that_lost_a_tensor_is_refused(lost: str, tmp_path: Path) -> None:
    factors = Factors(torch.ones(7, 1), torch.ones(1, 5))
    save_delta(tmp_path, Delta({"m": factors}, {"m": slices_of((7, 5), ROWS, [1, 3])}), {})
    tensors = load_file(tmp_path / "delta.safetensors")
    del tensors[f"m/{lost}"]
    save_file(tensors, tmp_path / "delta.safetensors")
    with pytest.raises(KeditError, match="damaged"):
        load_delta(tmp_path)


def test_checkpoints_hold_slices_and_biases() -> None:
    """Through torch.save and a load that unpickles nothing but tensors, numbers and their containers."""
    lm = tiny_lm("gptj")
    delta, buffer = pac_delta(lm, [1, 5]), io.BytesIO()
    torch.save(pack(delta), buffer)
    buffer.seek(0)
    found = unpack(torch.load(buffer, weights_only=True))
    assert equal(found, delta)
    with edited(lm.model, delta):
        want = state(lm.model)
    with edited(lm.model, found):
        assert same(lm.model, want)


def test_a_checkpoint_of_before_still_loads() -> None:
    found = unpack({"changes": {"m": (torch.ones(3, 1), torch.ones(1, 2))}, "pathways": {}})
    assert torch.equal(found.of_kind(Factors)["m"].dense(), torch.ones(3, 2))
    assert (found.of_kind(Slices), found.of_kind(BiasChange)) == ({}, {})
