"""Parts that fit into memory: what is halved, what is said, what is remembered, and that nothing is done twice."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence

import pytest
import torch

from kedit.errors import KeditError
from kedit.runtime.room import SCORING, VALUES, Room, in_parts, phases_in_parts, within


def fitting(most: int, tried: list[int]):
    def run(part: Sequence[int]) -> list[int]:
        tried.append(len(part))
        if len(part) > most:
            raise torch.OutOfMemoryError("a test")
        return [10 * i for i in part]

    return run


def test_all_at_once_where_it_fits(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []
    assert in_parts(Room(), VALUES, range(7), fitting(7, tried)) == [[0, 10, 20, 30, 40, 50, 60]]
    assert tried == [7]
    assert not caplog.records


def test_halved_said_once_and_remembered(caplog: pytest.LogCaptureFixture) -> None:
    room, tried = Room(), []
    with caplog.at_level(logging.WARNING):
        found = in_parts(room, VALUES, list(range(9)), fitting(3, tried))
        again = in_parts(room, VALUES, list(range(5)), fitting(3, tried))
    assert [i for part in found for i in part] == [10 * i for i in range(9)]
    assert [i for part in again for i in part] == [10 * i for i in range(5)]
    assert tried == [9, 4, 2, 2, 2, 2, 1, 2, 2, 1]
    (said,) = caplog.messages
    assert said.startswith("out of memory: v* does not fit with 9 requests side by side; it goes on with 2 at most")
    assert "edit.lanes" in said
    assert room.most(SCORING) is None, "kinds of work do not limit each other"


def test_a_size_that_is_no_count() -> None:
    """Rows of unlike length, whose size is what padding makes of them."""
    room = Room()
    room.allow(SCORING, 12)
    rows = [(0,) * n for n in (6, 5, 5, 3, 3, 3, 3, 1)]
    parts = in_parts(room, SCORING, rows, list, lambda part: len(part) * len(part[0]))
    assert [[len(row) for row in part] for part in parts] == [[6, 5], [5, 3], [3, 3, 3, 1]]
    room.allow(SCORING, 4)
    assert [len(part) for part in in_parts(room, SCORING, rows[:2], list, lambda p: len(p) * len(p[0]))] == [1, 1]


def test_one_alone_that_does_not_fit() -> None:
    with pytest.raises(KeditError, match=r"out of memory: v\* does not fit even with 1 requests"):
        in_parts(Room(), VALUES, range(4), fitting(0, []))


def test_a_bound_of_memory() -> None:
    room, tried = Room(), []

    def run(bound: int) -> int:
        tried.append(bound)
        if bound > 30:
            raise torch.OutOfMemoryError("a test")
        return bound

    assert within(room, SCORING, 100, run, 10) == 25
    assert within(room, SCORING, 100, run, 10) == 25
    assert tried == [100, 50, 25, 25]
    with pytest.raises(KeditError, match="out of memory"):
        within(Room(), SCORING, 100, run, 60)


def test_phases_are_begun_anew_with_the_same_random_numbers() -> None:
    drawn: list[list[float]] = []

    def run(part: Sequence[int]) -> Generator[int, None, list[float]]:
        numbers = [float(torch.rand(())) for _ in part]
        yield len(part)  # the step runs out of memory here
        drawn.append(numbers)
        return numbers

    torch.manual_seed(3)
    program = phases_in_parts(Room(), VALUES, range(6), run)
    assert next(program) == 6
    assert program.throw(torch.OutOfMemoryError("a test")) == 3
    assert next(program) == 3
    with pytest.raises(StopIteration) as stop:
        next(program)
    torch.manual_seed(3)
    wanted = [float(torch.rand(())) for _ in range(6)]
    assert [x for part in stop.value.value for x in part] == wanted
