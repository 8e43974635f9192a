"""Changes of any parameters: written in place and taken back, saved, joined, and beside other kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kedit.delta.apply import Weights, edited
from kedit.delta.biases import BiasChange
from kedit.delta.delta import Delta
from kedit.delta.dense import Dense
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.parameters import ParameterChange, parameter
from kedit.delta.serialization import load_delta, pack, save_delta, unpack
from kedit.errors import KeditError
from kedit.model.lm import LM
from tests.support.tiny_models import KINDS, tiny_lm


def bits(lm: LM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def of_all(lm: LM, seed: int) -> Delta:
    """Every parameter is changed, a shared one once."""
    random = torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, Tensor]] = {}
    for full, _ in lm.model.named_parameters():
        path, _, name = full.rpartition(".")
        shape = parameter(module := lm.model.get_submodule(path), name)(module).shape
        found.setdefault(path, {})[name] = 0.1 * torch.randn(shape, generator=random)
    return Delta({path: ParameterChange(changes) for path, changes in found.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_parameter_is_written_and_taken_back(kind: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(kind, dtype=dtype, n_layers=2)
    before, delta = bits(lm), of_all(lm, 1)
    own = [
        (parameter(module := lm.model.get_submodule(path), name)(module), added)
        for path, change in delta.of_kind(ParameterChange).items()
        for name, added in change.changes.items()
    ]
    wanted = [(p.float() + added + added).to(dtype) for p, added in own]
    with edited(lm.model, delta, delta):
        for (p, _), value in zip(own, wanted, strict=True):
            torch.testing.assert_close(p.detach(), value, atol=1e-6, rtol=0.01 if dtype == torch.bfloat16 else 1e-6)
    after = bits(lm)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_beside_other_kinds_of_the_same_parameters(order: tuple[int, ...]) -> None:
    """All kinds share a parameter's backup, so that the bits come back whoever wrote first."""
    lm = tiny_lm("gpt2")
    path = lm.arch.path("mlp_out", 1)
    all_of = of_all(lm, 1)
    own = all_of.of_kind(ParameterChange)[path].changes
    parts = [all_of, Delta({path: Dense(own["weight"] * 2)}), Delta({path: BiasChange(own["bias"] * 3)})]
    before, weights = bits(lm), Weights(lm.model)
    for i in order:
        weights.add(parts[i])
    weights.restore()
    after = bits(lm)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    joined = Delta.concat(parts)
    total = all_of.norm() ** 2 + 8 * float(own["weight"].square().sum()) + 15 * float(own["bias"].square().sum())
    assert joined.norm() == pytest.approx(total**0.5, rel=1e-5)


def test_sums_files_and_checkpoints(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    one, two = of_all(lm, 1), of_all(lm, 2)
    both = Delta.concat([one, two])
    save_delta(tmp_path, both, {"model_fingerprint": lm.fingerprint})
    for found in (load_delta(tmp_path, lm)[0], unpack(pack(both))):
        for path, change in found.of_kind(ParameterChange).items():
            for name, added in change.changes.items():
                parts = [delta.of_kind(ParameterChange)[path].changes[name] for delta in (one, two)]
                assert torch.equal(added, parts[0] + parts[1])


def test_what_does_not_fit_is_refused() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(ValueError, match="not float32"):
        ParameterChange({"weight": torch.zeros(3, dtype=torch.float64)})
    for name, shape in (("weight", (3,)), ("bias", (32,)), ("forward", (1,))):
        delta = Delta({lm.arch.family.norm: ParameterChange({name: torch.zeros(shape)})})
        with pytest.raises(KeditError, match=r"of another model$"), edited(lm.model, delta):
            pass
    assert not of_all(lm, 1).fits_lanes
    with pytest.raises(KeditError, match="cannot run side by side"):
        BatchedDeltas(lm.model, [of_all(lm, 1)])
