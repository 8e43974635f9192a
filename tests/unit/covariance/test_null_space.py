"""Null spaces of the keys: the projector's identities in float64, and the eigenvectors kept beside C."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.covariance import Covariance, StatsConfig, covariances, store
from kedit.covariance.null_space import Spectrum
from kedit.errors import KeditError
from tests.support.tiny_models import TEXT, tiny_lm

D = 24


def made(values: list[float] | Tensor, seed: int = 0) -> tuple[Covariance, Tensor]:
    """A covariance with these eigenvalues, and its eigenvectors in their order, `[D, D]`."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=generator))
    c = (q * torch.as_tensor(values, dtype=torch.float64)) @ q.T
    return Covariance((c + c.T) / 2, 10_000, 0.0), q


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{i}. {line}" for i in range(3) for line in TEXT.splitlines()))
    return path


def config(text: Path, **more: Any) -> StatsConfig:
    return StatsConfig(corpus=str(text), tokens=600, sequence_length=64, batch_tokens=128, **more)


@pytest.mark.parametrize(("threshold", "kept"), [(1e-9, 20), (0.005, 20), (0.02, 21), (0.2, 22), (5.0, 23)])
def test_the_projector_and_its_rank(threshold: float, kept: int) -> None:
    """P is a projector that annihilates the leading directions and leaves all others as they are."""
    cov, q = made([0.0] * 20 + [0.01, 0.1, 1.0, 100.0])
    space = cov.null_space(threshold)
    p = space.dense()
    assert space.rank == kept == round(float(p.trace()))
    assert torch.allclose(p, p.T, atol=1e-12)
    assert torch.allclose(p @ p, p, atol=1e-12)
    assert float((p @ q[:, kept:]).norm()) < 1e-11
    assert torch.allclose(p @ q[:, :kept], q[:, :kept], atol=1e-11)
    keys = torch.randn(5, D, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(space.project(keys), keys.double() @ p, atol=1e-12)
    assert torch.allclose(space.project(space.project(keys)), space.project(keys), atol=1e-12)


def test_a_change_in_the_null_space_moves_ordinary_keys_by_less_than_the_threshold() -> None:
    """E||Delta k||^2 = tr(Delta C Delta^T) <= ||Delta||^2 * threshold (baselines 1.19, 7)."""
    cov, _ = made(torch.logspace(-4, 3, D, dtype=torch.float64))
    delta = cov.null_space(0.02).project(torch.randn(7, D, generator=torch.Generator().manual_seed(2)))
    moved = float(torch.trace(delta @ cov.mean @ delta.T))
    assert 0 < moved <= float(delta.norm()) ** 2 * 0.02


def test_it_needs_no_inverse_and_no_ridge() -> None:
    keys = torch.randn(5, D, generator=torch.Generator().manual_seed(3)).double()
    few = Covariance(keys.T @ keys / 5, 5, ridge=0.0)
    with pytest.raises(KeditError, match="cannot be inverted"):
        few.solve(keys)
    assert few.null_space(1e-9).rank == D - 5
    assert few.with_ridge(10.0).null_space(1e-9).rank == D - 5
    assert few.to("cpu").null_space(1e-9).rank == D - 5


def test_a_threshold_below_everything_is_refused() -> None:
    cov, _ = made([0.5] * D)
    with pytest.raises(KeditError, match=r"no direction with a second moment below 0\.1: the smallest is 0\.5"):
        cov.null_space(0.1)
    assert cov.null_space(0.6).rank == D


def test_eigenvectors_are_computed_once(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all thresholds and all runs; the statistics' own files stay what they were."""
    lm, computed = tiny_lm("gpt2"), []
    of = Spectrum.of
    monkeypatch.setattr(Spectrum, "of", staticmethod(lambda mean: computed.append(mean) or of(mean)))
    first = covariances(lm, [0, 1], config(text), tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.c_proj.safetensors")}
    assert not list(tmp_path.rglob("*.eigenvectors.*")), "only a method that asks pays for them"
    found = [first[0].null_space(threshold) for threshold in (0.5, 1.0, 5.0)]
    assert [space.rank for space in found] == sorted({space.rank for space in found})
    again = covariances(lm, [0, 1], config(text, ridge=0.5), tmp_path)
    assert torch.equal(again[0].null_space(0.5).leading, found[0].leading)
    assert len(computed) == 1
    (kept,) = tmp_path.rglob("*.eigenvectors.safetensors")
    assert kept.name.startswith("transformer.h.0.mlp.c_proj.")
    again[1].null_space(0.5)
    assert len(computed) == 2
    assert all(path.read_bytes() == data for path, data in files.items())
    small = of(first[0].mean).vectors[:, : found[0].rank]
    assert torch.allclose(found[0].dense(), small @ small.T, atol=1e-12)


@pytest.mark.parametrize("damage", ["bit", "truncated", "foreign", "of another C", "narrow"])
def test_a_damaged_file_is_refused_by_name(text: Path, tmp_path: Path, damage: str) -> None:
    lm = tiny_lm("gpt2")
    covs = covariances(lm, [0, 1], config(text), tmp_path)
    for cov in covs.values():
        cov.null_space(0.5)
    path, other = sorted(tmp_path.rglob("*.eigenvectors.safetensors"))
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-1000] ^= 1
    path.write_bytes(data[:-100] if damage == "truncated" else other.read_bytes() if damage == "foreign" else data)
    if damage == "of another C":
        _, card = store.read(path)
        spectrum = Spectrum.of(torch.eye(covs[0].d_in))
        store.write(path, {"values": spectrum.values, "vectors": spectrum.vectors}, card | {"of": "other"})
    if damage == "narrow":
        tensors, card = store.read(path)
        store.write(path, {"values": tensors["values"], "vectors": tensors["vectors"][:, 1:]}, card)
    with pytest.raises(KeditError, match=r"eigenvectors\.safetensors.*[Dd]elete it"):
        covariances(lm, [0], config(text), tmp_path)[0].null_space(0.5)
    path.unlink()
    again = covariances(lm, [0], config(text), tmp_path)[0].null_space(0.5)
    assert torch.equal(again.leading, covs[0].null_space(0.5).leading)
