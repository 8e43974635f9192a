"""A kind of change that kedit does not know, defined here alone, goes wherever kedit's own kinds go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from kedit.delta.apply import Weights, edited
from kedit.delta.biases import BiasChange
from kedit.delta.change import Change, LaneStack, OutputPart, WeightChange
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.kinds import KINDS
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.place import Place
from kedit.delta.serialization import load_delta, pack, save_delta, unpack
from kedit.delta.slices import Slices
from kedit.errors import KeditError
from kedit.model.architecture import weight
from kedit.model.lm import LM
from tests.support.tiny_models import tiny_lm


@dataclass(frozen=True)
class Foreign(WeightChange):
    """`W' = W + matrix`, as plain fine-tuning makes it."""

    matrix: Tensor

    kind: ClassVar[str] = "foreign"

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def dense(self) -> Tensor:
        return self.matrix

    def to(self, device: torch.device | str) -> Foreign:
        return Foreign(self.matrix.to(device))

    @classmethod
    def add(cls, parts: Sequence[Foreign]) -> Foreign:
        return Foreign(torch.stack([part.matrix for part in parts]).sum(0))

    def tensors(self) -> dict[str, Tensor]:
        return {"foreign.matrix": self.matrix}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Foreign | None:
        return Foreign(tensors["foreign.matrix"]) if "foreign.matrix" in tensors else None

    @classmethod
    def stack(cls, parts: Mapping[int, Foreign], n_lanes: int) -> Sequence[LaneStack]:
        return [_OwnStack(parts, n_lanes)]


class _OwnStack(LaneStack):
    def __init__(self, parts: Mapping[int, Foreign], n: int) -> None:
        first = next(iter(parts.values())).matrix
        self.matrices = first.new_zeros(n, *first.T.shape)
        for i, part in parts.items():
            self.matrices[i] = part.matrix.T

    def after(self, lanes: Tensor, device: torch.device) -> OutputPart:
        matrices = self.matrices[lanes].to(device)
        return lambda x, y: torch.baddbmm(y, x.to(y.dtype), matrices.to(y.dtype))


@dataclass(frozen=True)
class Shift(Change):
    """What a module reads is moved by a constant: no parameter at all, and no lanes."""

    vector: Tensor

    kind: ClassVar[str] = "shift"

    def to(self, device: torch.device | str) -> Shift:
        return Shift(self.vector.to(device))

    def check(self, path: str, module: nn.Module) -> None:
        if weight(module).shape[1] != len(self.vector):
            raise KeditError(f"{path!r} reads something else")

    def write(self, place: Place) -> None:
        earlier = place.installed(Shift)
        whole = self if earlier is None else Shift.add([earlier, self])
        move = lambda _, args: (args[0] + whole.vector.to(args[0].dtype), *args[1:])  # noqa: E731
        place.install(whole, lambda: [place.module.register_forward_pre_hook(move)])

    @classmethod
    def add(cls, parts: Sequence[Shift]) -> Shift:
        return Shift(torch.stack([part.vector for part in parts]).sum(0))

    def tensors(self) -> dict[str, Tensor]:
        return {"shift.vector": self.vector}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Shift | None:
        return Shift(tensors["shift.vector"]) if "shift.vector" in tensors else None


ALL = (*KINDS, Foreign, Shift)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_delta(lm: LM, seed: int, *also: Mapping[str, Change]) -> Delta:
    path = lm.arch.path("mlp_out", 1)
    return Delta({path: Foreign(rand(*weight(lm.model.get_submodule(path)).shape, seed=seed))}, *also)


def logits(lm: LM, n_rows: int = 1) -> Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([lm.encode("The capital of France is Paris")] * n_rows)).logits


def state(lm: LM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def assert_untouched(lm: LM, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_written_and_taken_back(kind: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(kind, dtype=dtype)
    path, before = lm.arch.path("mlp_out", 1), state(lm)
    w = weight(lm.model.get_submodule(path))
    deltas = [a_delta(lm, 1), a_delta(lm, 2, {path: Shift(rand(w.shape[1]))}, {path: Factors(*two(lm, path))})]
    want, plain = w.float(), logits(lm)
    for delta in deltas:
        for own in (delta.of_kind(Factors), delta.of_kind(Foreign)):
            want = want + sum(change.dense() for change in own.values())
    weights = Weights(lm.model)
    for delta in deltas:
        weights.add(delta)
    torch.testing.assert_close(w, want.to(dtype), atol=0, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5)
    with_hook = logits(lm)
    deltas[1].of_kind(Shift)[path].vector.zero_()
    assert not torch.equal(with_hook, logits(lm))
    weights.restore()
    assert_untouched(lm, before)
    assert torch.equal(logits(lm), plain)


def two(lm: LM, path: str) -> tuple[Tensor, Tensor]:
    d_out, d_in = weight(lm.model.get_submodule(path)).shape
    return rand(d_out, 2, seed=8), rand(2, d_in, seed=9)


def test_it_runs_in_lanes() -> None:
    """Beside lanes of other kinds, and with them in one lane."""
    lm = tiny_lm("gpt2")
    path, before = lm.arch.path("mlp_out", 1), state(lm)
    d_out, d_in = weight(lm.model.get_submodule(path)).shape
    others = ({path: Factors(*two(lm, path))}, {path: BiasChange(rand(d_out))})
    deltas = [a_delta(lm, 1), Delta(*others), a_delta(lm, 2, *others), Delta()]
    lanes = [2, -1, 0, 1, 3, 2]
    with BatchedDeltas(lm.model, deltas).rows(torch.tensor(lanes)):
        got = logits(lm, len(lanes))
    plain = logits(lm, len(lanes))
    for row, lane in enumerate(lanes):
        with edited(lm.model, *([deltas[lane]] if lane >= 0 else [])):
            torch.testing.assert_close(got[row], logits(lm)[0], atol=1e-3, rtol=1e-3)
        assert torch.equal(got[row], plain[row]) == (lane in (-1, 3))
    with pytest.raises(KeditError, match="changes of kind 'shift' cannot run side by side"):
        BatchedDeltas(lm.model, [Delta({path: Shift(rand(d_in))})])
    assert_untouched(lm, before)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    path = lm.arch.path("mlp_out", 1)
    shift = Shift(rand(weight(lm.model.get_submodule(path)).shape[1]))
    delta = a_delta(lm, 1, {path: shift}, {path: Factors(*two(lm, path))})
    save_delta(tmp_path, delta, {"model_fingerprint": lm.fingerprint})
    for found in (load_delta(tmp_path, lm, kinds=ALL)[0], unpack(pack(delta), kinds=ALL)):
        assert [type(change) for change in dict(found.items())[path]] == [Factors, Foreign, Shift]
        assert torch.equal(found.of_kind(Foreign)[path].matrix, delta.of_kind(Foreign)[path].matrix)
        with edited(lm.model, delta):
            want = logits(lm)
        with edited(lm.model, found):
            assert torch.equal(logits(lm), want)
    with pytest.raises(KeditError, match=r"damaged \(tensors without their counterpart: .*/foreign.matrix"):
        load_delta(tmp_path, lm)
    with pytest.raises(ValueError, match=r"not known here: .*dense"):
        unpack(pack(delta))


def test_it_adds_up() -> None:
    """With its own kind, and in the norm with other kinds of the same matrix."""
    lm = tiny_lm("llama")
    path, before = lm.arch.path("mlp_out", 1), state(lm)
    d_out, d_in = weight(lm.model.get_submodule(path)).shape
    lines = Slices(torch.tensor([1, 4]), rand(2, d_in, seed=5), 0, (d_out, d_in))
    deltas = [a_delta(lm, 1), Delta({path: Factors(*two(lm, path))}), a_delta(lm, 2, {path: lines})]
    joined = Delta.concat(deltas)
    assert [type(change) for change in dict(joined.items())[path]] == [Factors, Slices, Foreign]
    total = sum(change.dense().double() for delta in deltas for own in dict(delta.items()).values() for change in own)  # type: ignore[attr-defined]
    assert isinstance(total, Tensor)
    assert joined.norm() == pytest.approx(float(total.norm()), rel=1e-6)
    with edited(lm.model, joined):
        got = weight(lm.model.get_submodule(path)).clone()
    torch.testing.assert_close(got, (before[f"{path}.weight"].double() + total).float(), atol=1e-5, rtol=1e-5)
    assert_untouched(lm, before)


def test_one_of_another_model_is_refused(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    path, before = lm.arch.path("mlp_out", 1), state(lm)
    bad = {
        "of shape \\(3, 4\\), here it is": Delta({path: Foreign(rand(3, 4))}),
        "reads something else": Delta({path: Shift(rand(3))}),
        "not finite": Delta({path: Shift(torch.full((weight(lm.model.get_submodule(path)).shape[1],), torch.nan))}),
    }
    for message, delta in bad.items():
        with pytest.raises(KeditError, match=message), edited(lm.model, delta):
            pass
        assert_untouched(lm, before)
    factors = Factors(*two(lm, path))
    save_delta(tmp_path, Delta({path: factors}, {path: Foreign(rand(3, 4))}), {})
    with pytest.raises(KeditError, match="are of different matrices"):
        load_delta(tmp_path, kinds=ALL)
    with pytest.raises(ValueError, match=r"two changes of .* are Factors"):
        Delta({path: factors}, {path: factors})
