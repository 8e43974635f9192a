"""Changes of a matrix as two factors: exact, and as few directions as there are."""

from __future__ import annotations

import pytest
import torch

from kedit.delta.change import WeightChange
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors
from kedit.delta.slices import Slices
from kedit.export.low_rank import EXACT, factors_of, lost, most_directions, recompressed


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(*index: int) -> Slices:
    return Slices(torch.tensor(index), normal(len(index), 9, seed=2), 0, (6, 9))


def columns(*index: int) -> Slices:
    return Slices(torch.tensor(index), normal(len(index), 6, seed=3), 1, (6, 9))


@pytest.mark.parametrize(
    ("changes", "rank"),
    [
        ([Factors(normal(6, 2), normal(2, 9))], 2),
        ([rows(1, 4)], 2),
        ([columns(0, 3, 8)], 3),
        ([columns(*range(8))], 6),  # of 6 rows
        ([Factors(normal(6, 2), normal(2, 9)), rows(5), Dense(torch.outer(normal(6), normal(9)))], 4),
        ([Factors(normal(6, 5), normal(5, 9)), rows(1, 4)], 6),
    ],
)
def test_factors_are_the_sum(changes: list[WeightChange], rank: int) -> None:
    factors = factors_of(changes)
    assert factors is not None
    assert factors.rank == rank
    wanted = sum(change.dense().double() for change in changes)
    torch.testing.assert_close(factors.left.double() @ factors.right.double(), wanted, atol=1e-6, rtol=1e-6)


def test_slices_are_taken_bit_for_bit() -> None:
    for change in (rows(0, 5), columns(2, 7)):
        factors = factors_of([change])
        assert factors is not None
        assert torch.equal(factors.dense(), change.dense())


def test_a_whole_matrix() -> None:
    """By its lines where it has few, by its directions where it has few, and not at all where it has many of both."""
    matrix = torch.zeros(6, 9)
    matrix[:, 4] = normal(6)
    by_line = factors_of([Dense(matrix)])
    assert by_line is not None
    assert torch.equal(by_line.dense(), matrix)
    by_direction = factors_of([Dense(normal(6, 2) @ normal(2, 9))])
    assert by_direction is not None
    assert by_direction.rank == 2
    assert factors_of([Dense(normal(6, 9))]) is None
    nothing = factors_of([Dense(torch.zeros(6, 9))])
    assert nothing is not None
    assert nothing.rank == 0
    r = most_directions((6, 9))
    assert r * 6 + r * 9 <= 6 * 9 < (r + 1) * (6 + 9)


def test_recompressed() -> None:
    one, other = Factors(normal(6, 1), normal(1, 9)), Factors(normal(6, 1, seed=5), normal(1, 9, seed=5))
    again = Factors.add([one, other, one, other])
    small = recompressed(again)
    assert (again.rank, small.rank) == (4, 2)
    assert lost(again, small) <= 2 * EXACT
    torch.testing.assert_close(small.dense(), again.dense(), atol=1e-5, rtol=1e-5)
    assert recompressed(small).rank == 2
    apart = Factors.add([one, other])
    assert recompressed(apart) is apart
    assert lost(one, other) > 0.1
