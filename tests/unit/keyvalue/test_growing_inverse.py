"""Closed forms that remember past keys: identities 4 to 8 of the baselines, the switch to dense, drift (float64)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.covariance import Covariance
from kedit.covariance.null_space import NullSpace, Spectrum
from kedit.keyvalue import growing_inverse, solvers
from kedit.keyvalue.growing_inverse import GrowingInverse, Metric, WeighedCovariance, WithinNullSpace

D, OUT, LAM, L2 = 24, 7, 3.0, 0.7
EYE = torch.eye(D, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(rank: int = 3 * D) -> Covariance:
    keys = random(rank, D, seed=99) * torch.linspace(0.05, 2.0, D, dtype=torch.float64)
    return Covariance(keys.T @ keys / rank, rank, ridge=0.0)


def null_space(threshold: float = 0.5) -> NullSpace:
    space = covariance().null_space(threshold)
    assert 3 < space.rank < D - 3
    return space


def metrics() -> list[Metric]:
    return [WeighedCovariance(covariance(), LAM), WithinNullSpace(null_space(), L2)]


def batches(sizes: list[int]) -> list[Tensor]:
    return [random(n, D, seed=i + 1) for i, n in enumerate(sizes)]


def wanted(metric: Metric, past: Tensor, keys: Tensor) -> Tensor:
    """X of a system solved anew, dense: (A + Kp Kp^T + K K^T)^-1 K within the directions that are allowed."""
    allowed = metric.project(EYE)
    total = past.T @ past + keys.T @ keys
    a = metric.times(allowed) + (EYE - allowed)
    return (allowed @ torch.linalg.solve(a + allowed @ total @ allowed, allowed @ keys.T)).T


def close(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> None:
    assert float((one - other).norm()) <= tolerance * float(other.norm())


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("sizes", [[5, 5, 5], [1, 9, 2, 30, 4], [10, 10, 10, 10, 10], [30, 3], [3, 21, 1]])
def test_every_batch_is_solved_as_if_anew(which: int, sizes: list[int]) -> None:
    """Identity 8: in factor form, at the switch, and dense."""
    metric, inverse, seen = metrics()[which], GrowingInverse(D), torch.zeros(0, D, dtype=torch.float64)
    for keys in batches(sizes):
        close(inverse.gains(keys, metric), wanted(metric, seen, keys))
        inverse.add(keys, metric)
        seen = torch.cat([seen, keys])
        assert inverse.count == len(seen)
        assert (inverse.dense is not None) == (len(seen) >= D)
        if inverse.dense is not None:
            close(inverse.dense, wanted_inverse(metric, seen))
            assert inverse.total is not None
            close(inverse.total, seen.T @ seen)


def wanted_inverse(metric: Metric, past: Tensor) -> Tensor:
    allowed = metric.project(EYE)
    a = metric.times(allowed) + (EYE - allowed)
    return allowed @ torch.linalg.inv(a + allowed @ past.T @ past @ allowed) @ allowed


@pytest.mark.parametrize("which", [0, 1])
def test_batches_are_a_joint_batch_whatever_their_order(which: int) -> None:
    """Identities 6 and 8: with keys and targets held fixed, what is left of each is solved for batch by batch."""
    metric, parts, targets = metrics()[which], batches([4, 3, 20, 5]), random(32, OUT, seed=50)
    parts = [metric.project(keys) if which else keys for keys in parts]
    goals = list(targets.split([4, 3, 20, 5]))
    joint = targets.T @ GrowingInverse(D).gains(torch.cat(parts), metric)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        change, inverse = torch.zeros(OUT, D, dtype=torch.float64), GrowingInverse(D)
        for i in order:
            residuals = goals[i].T - change @ parts[i].T
            change = change + residuals @ inverse.gains(parts[i], metric)
            inverse.add(parts[i], metric)
        close(change, joint)
    forgets = torch.zeros(OUT, D, dtype=torch.float64)
    for keys, goal in zip(parts, goals, strict=True):
        forgets = forgets + (goal.T - forgets @ keys.T) @ GrowingInverse(D).gains(keys, metric)
    assert float((forgets - joint).norm()) > 1e-2 * float(joint.norm()), "without memory it is another change"


def test_without_past_keys_it_is_memit() -> None:
    """Identities 4 and 5: MEMIT's own solver, its normal equations, what it leaves, and EMMET with a ridge."""
    cov, keys, residuals = covariance(), random(5, D), random(5, OUT, seed=1)
    x = GrowingInverse(D).gains(keys, WeighedCovariance(cov, LAM))
    change = solvers.memit(keys, residuals, cov, LAM).dense()
    close(residuals.T @ x, change)
    equations = LAM * change @ cov.mean + (change @ keys.T - residuals.T) @ keys
    assert float(equations.norm()) < 1e-10
    system = LAM * torch.eye(5, dtype=torch.float64) + keys @ cov.solve(keys).T
    close(residuals.T - change @ keys.T, LAM * residuals.T @ torch.linalg.inv(system))
    close(solvers.emmet(keys, residuals, cov, 30.0, LAM / 30.0).dense(), change)


def test_alphaedit_leaves_the_other_keys_alone() -> None:
    """Identity 7, with a threshold at numerical zero and a positive one."""
    few = covariance(rank=9)
    for space in (few.null_space(1e-9), null_space()):
        p = space.dense()
        close(p @ p, p)
        assert torch.equal(p, p.T)
        change = random(6, OUT, seed=3).T @ GrowingInverse(D).gains(random(6, D), WithinNullSpace(space, L2))
        close(change @ p, change)
        other = random(4, D, seed=8) @ (EYE - p)
        assert float((change @ other.T).norm()) < 1e-12 * float(change.norm() * other.norm())
    change = random(6, OUT, seed=3).T @ GrowingInverse(D).gains(random(6, D), WithinNullSpace(few.null_space(1e-9), L2))
    assert float((change @ few.mean).norm()) < 1e-12 * float(change.norm())
    change = random(6, OUT, seed=3).T @ GrowingInverse(D).gains(random(6, D), WithinNullSpace(null_space(0.5), L2))
    moved = float(torch.trace(change @ covariance().mean @ change.T))
    assert 0 < moved <= 0.5 * float(change.norm()) ** 2


def test_alphaedits_forms_agree() -> None:
    """Identity 8: the code's solve, the paper's form, the symmetric, the reduced and the factor form are one change."""
    space, past, keys, residuals = null_space(), random(9, D, seed=4), random(5, D), random(5, OUT, seed=1)
    p, r, k, kp = space.dense(), residuals.T, keys.T, past.T
    inverse = GrowingInverse(D)
    inverse.add(past, WithinNullSpace(space, L2))
    change = r @ inverse.gains(keys, WithinNullSpace(space, L2))
    total = k @ k.T + kp @ kp.T
    close(change, torch.linalg.solve(p @ total + L2 * EYE, p @ k @ r.T).T)
    close(change, r @ k.T @ p @ torch.linalg.inv(kp @ kp.T @ p + k @ k.T @ p + L2 * EYE))
    close(change, r @ k.T @ p @ torch.linalg.inv(p @ total @ p + L2 * EYE))
    vectors = torch.linalg.eigh(p).eigenvectors[:, -space.rank :]
    reduced = vectors @ torch.linalg.inv(vectors.T @ total @ vectors + L2 * torch.eye(space.rank).double()) @ vectors.T
    close(change, r @ k.T @ reduced)
    every, wide = torch.cat([k, kp], 1), torch.cat([r, torch.zeros(OUT, 9).double()], 1)
    close(change, wide @ torch.linalg.inv(every.T @ p @ every + L2 * torch.eye(14).double()) @ every.T @ p)


def test_with_every_direction_and_no_past_it_is_ridge_regression() -> None:
    """Identity 8."""
    space = NullSpace(Spectrum.of(covariance().mean).vectors[:, :0])
    keys, residuals = random(5, D), random(5, OUT, seed=1)
    change = residuals.T @ GrowingInverse(D).gains(keys, WithinNullSpace(space, L2))
    close(change, residuals.T @ torch.linalg.inv(keys @ keys.T + L2 * torch.eye(5).double()) @ keys)


@pytest.mark.parametrize("which", [0, 1])
def test_two_thousand_updates_do_not_drift(which: int) -> None:
    """Keys of very different lengths, many of them alike; the inverse is never computed anew on the way."""
    metric, inverse = Counted(metrics()[which]), GrowingInverse(D)
    for step in range(400):
        keys = random(5, D, seed=step % 40) * 10.0 ** (step % 5 - 2)
        inverse.add(keys, metric)
    assert metric.inverses == 1
    assert inverse.dense is not None
    assert inverse.total is not None
    close(inverse.dense, metric.inverse(inverse.total), 1e-7)


@pytest.mark.parametrize("which", [0, 1])
def test_what_has_drifted_is_computed_anew(which: int, caplog: pytest.LogCaptureFixture) -> None:
    metric, inverse = metrics()[which], GrowingInverse(D)
    inverse.add(random(D, D), metric)
    assert inverse.dense is not None
    assert inverse.total is not None
    inverse.dense *= 1 + 1e-5
    with caplog.at_level("INFO"):
        inverse.add(random(2, D, seed=5), metric)
    assert "computed anew" in caplog.text
    assert torch.equal(inverse.dense, metric.inverse(inverse.total))


def test_the_threshold_of_drift_is_far_from_rounding_and_from_float32() -> None:
    assert 1e-12 < growing_inverse.DRIFT < 1e-6


@dataclass
class Counted:
    """A metric that counts how often an inverse is computed."""

    metric: Any
    inverses: int = 0

    def project(self, keys: Tensor) -> Tensor:
        return self.metric.project(keys)

    def times(self, keys: Tensor) -> Tensor:
        return self.metric.times(keys)

    def solve(self, keys: Tensor) -> Tensor:
        return self.metric.solve(keys)

    def inverse(self, total: Tensor) -> Tensor:
        self.inverses += 1
        return self.metric.inverse(total)
