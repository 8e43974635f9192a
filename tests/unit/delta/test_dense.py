"""Dense changes: lanes equal weights, joined, saved, next to other kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.serialization import load_delta, pack, save_delta, unpack
from kedit.errors import KeditError
from kedit.model.architecture import weight
from kedit.model.lm import LM
from tests.support.tiny_models import KINDS, tiny_lm


def rand(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_delta(lm: LM, seed: int, layer: int = 1) -> Delta:
    path = lm.arch.path("mlp_out", layer)
    return Delta({path: Dense(rand(*weight(lm.model.get_submodule(path)).shape, seed=seed))})


def logits(lm: LM, n_rows: int = 1) -> Tensor:
    with torch.no_grad():
        return lm.model(torch.tensor([lm.encode("The capital of France is Paris")] * n_rows)).logits


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_lanes_are_the_written_weights(kind: str) -> None:
    lm = tiny_lm(kind)
    deltas = [a_delta(lm, 1), a_delta(lm, 2, layer=0)]
    lanes = torch.tensor([1, -1, 0, 1])
    plain = logits(lm, 4)
    with BatchedDeltas(lm.model, deltas).rows(lanes):
        found = logits(lm, 4)
    assert torch.equal(found[1], plain[1])
    for row, lane in enumerate(lanes.tolist()):
        if lane >= 0:
            with edited(lm.model, deltas[lane]):
                torch.testing.assert_close(found[row], logits(lm)[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(lm, 4), plain)


def test_beside_another_kind_and_joined() -> None:
    lm = tiny_lm("llama")
    path = lm.arch.path("mlp_out", 1)
    d_out, d_in = weight(lm.model.get_submodule(path)).shape
    factors = Factors(rand(d_out, 2, seed=3), rand(2, d_in, seed=4))
    one, two = a_delta(lm, 1), a_delta(lm, 2)
    both = Delta.concat([one, two, Delta({path: factors})])
    whole = one.of_kind(Dense)[path].matrix + two.of_kind(Dense)[path].matrix + factors.dense()
    assert both.norm() == pytest.approx(float(whole.norm()), rel=1e-5)
    before = weight(lm.model.get_submodule(path)).clone()
    with edited(lm.model, both):
        torch.testing.assert_close(weight(lm.model.get_submodule(path)) - before, whole)


def test_files_and_checkpoints_hold_it(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    delta = a_delta(lm, 1)
    save_delta(tmp_path, delta, {"model_fingerprint": lm.fingerprint})
    for found in (load_delta(tmp_path, lm)[0], unpack(pack(delta))):
        for path, change in delta.of_kind(Dense).items():
            assert torch.equal(found.of_kind(Dense)[path].matrix, change.matrix)


def test_what_does_not_fit_is_refused() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(ValueError, match="float32"):
        Dense(torch.zeros(3, 2, dtype=torch.float64))
    with (
        pytest.raises(KeditError, match="another model"),
        edited(lm.model, Delta({lm.arch.path("mlp_out", 1): Dense(torch.zeros(3, 2))})),
    ):
        pass


def test_a_low_rank_for_export() -> None:
    """The smallest rank whose error is as small as asked for: by the singular values that are left out."""
    u, v = torch.linalg.qr(rand(40, 20))[0], torch.linalg.qr(rand(30, 20, seed=1))[0]
    sizes = 0.5 ** torch.arange(20)
    change = Dense((u * sizes) @ v.T)
    for error in (0.3, 0.01, 1e-4):
        factors = change.low_rank(error)
        assert float((factors.dense() - change.matrix).norm() / change.matrix.norm()) <= error + 1e-6
        lost = sizes[factors.rank - 1 :].square().sum() / sizes.square().sum()
        assert float(lost) ** 0.5 > error, "one rank less is too far"
    assert change.low_rank(0.0).shape == change.shape
    torch.testing.assert_close(change.low_rank(0.0).dense(), change.matrix, atol=1e-6, rtol=1e-5)
    assert (change.low_rank(1.0).rank, Dense(torch.zeros(4, 3)).low_rank(0.1).rank) == (0, 0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        change.low_rank(1.5)
