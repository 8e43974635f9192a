"""Work in parts that fit into memory: what runs out is halved and tried again, and the size that fits is remembered.

`in_parts` is for work that is one call (scoring, generation, statistics), `phases_in_parts` for work that needs
optimiser steps of somebody else in between (v*, adapters, fine-tuning in lanes). A part that is tried again starts from
nothing, with the random numbers that it had, so that its result is that of a run which was asked for the smaller size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from kedit.errors import KeditError

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Y = TypeVar("Y")
Size = Callable[[Sequence[Any]], int]


@dataclass(frozen=True)
class Work:
    """A kind of work that can be done in smaller parts.

    Attributes:
        what: What runs, e.g. `v*`.
        unit: What its size counts, e.g. `requests side by side`.
        option: The option that sets the size.
    """

    what: str
    unit: str
    option: str


VALUES = Work("v*", "requests side by side", "edit.lanes")
ADAPTERS = Work("training REP's adapters", "adapters side by side", "edit.lanes")
TUNING = Work("fine-tuning", "requests side by side", "edit.lanes")
SCORING = Work("scoring", "tokens in a batch", "metrics.scoring.batch_tokens")
GENERATION = Work("generation", "tokens in a batch", "metrics.scoring.batch_tokens")
SAMPLING = Work("sampling", "texts side by side", "stats.tokens")
STATISTICS = Work("the statistics", "sequences in a pass", "stats.batch_tokens")
KEYS = Work("reading keys", "tokens in a batch", "edit.lanes")
TRACING = Work("tracing paths", "bytes for graphs and gradients", "model.trace.memory")
RESTORING = Work("causal tracing", "tokens in a batch", "trace.batch_tokens")


class Room:
    """The most of each kind of work that is known to fit; a model has one."""

    def __init__(self) -> None:
        self._most: dict[Work, int] = {}
        self._unsaid: dict[Work, int] = {}  # what did not fit, until it is known what does

    def most(self, work: Work) -> int | None:
        """How much of it may be done at once; None: nothing is known."""
        return self._most.get(work)

    def allow(self, work: Work, most: int) -> None:
        """So much fits, as far as anyone knows."""
        self._most[work] = max(1, most)

    @property
    def limited(self) -> bool:
        """Whether less is done at once than was asked for, of anything."""
        return bool(self._most)

    def take(self, work: Work, items: Sequence[T], size: Size) -> Sequence[T]:
        """The items from the first one on that may be worked on at once, one at least."""
        most, n = self._most.get(work), len(items)
        while most is not None and n > 1 and size(items[:n]) > most:
            n = min(n - 1, max(1, n * most // size(items[:n])))
        return items[:n]

    def halve(self, work: Work, size: int, single: bool) -> None:
        """Takes up that `size` does not fit: half of it is tried next.

        Args:
            work: What ran.
            size: How much of it.
            single: It cannot be made smaller.

        Raises:
            KeditError: Then.
        """
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if single:
            raise KeditError(f"out of memory: {work.what} does not fit even with {size} {work.unit}. {SMALLER}")
        self._unsaid.setdefault(work, size)
        self.allow(work, size // 2)

    def fits(self, work: Work) -> None:
        """Takes up that what is allowed fits, and says so where more was tried before."""
        if work in self._unsaid:
            log.warning(
                "out of memory: %s does not fit with %d %s; it goes on with %d at most (%s sets a number)",
                work.what, self._unsaid.pop(work), work.unit, self._most[work], work.option,
            )  # fmt: skip


SMALLER = "Use lm.dtype: bfloat16 or a smaller model, or see `kedit plan` and docs/troubleshooting.md"


def in_parts(room: Room, work: Work, items: Sequence[T], run: Callable[[Sequence[T]], R], size: Size = len) -> list[R]:
    """`run` of the items in as few parts as fit; what it returned of each part, in their order.

    Args:
        room: What is known to fit.
        work: What `run` does.
        items: All of them.
        run: Works on some that follow each other. It may be called again for items for which memory ran out.
        size: How much work some items are.

    Raises:
        KeditError: A single item does not fit.
    """
    found: list[R] = []
    while items:
        part, full = room.take(work, items, size), False
        try:
            found.append(run(part))
        except torch.OutOfMemoryError:
            full = True  # tried again below, where the error and what it holds are gone
        if full:
            room.halve(work, size(part), len(part) == 1)
            continue
        room.fits(work)
        items = items[len(part) :]
    return found


def within(room: Room, work: Work, most: int, run: Callable[[int], R], least: int) -> R:
    """`run` with a bound of memory in bytes, halved until it fits.

    Args:
        room: What is known to fit.
        work: What `run` does.
        most: The bound that was asked for.
        run: Does the work within a bound; its result does not depend on it.
        least: A bound that cannot be made smaller.

    Raises:
        KeditError: Even that does not fit.
    """
    while True:
        known, full = room.most(work), False
        bound = most if known is None else min(most, known)
        found: list[R] = []
        try:
            found.append(run(bound))
        except torch.OutOfMemoryError:
            full = True
        if not full:
            room.fits(work)
            return found[0]
        room.halve(work, bound, bound <= least)


def phases_in_parts(
    room: Room, work: Work, items: Sequence[T], run: Callable[[Sequence[T]], Generator[Y, None, R]], size: Size = len
) -> Generator[Y, None, list[R]]:
    """As `in_parts` where `run` yields phases; who makes their steps throws `OutOfMemoryError` in where one fails."""
    found: list[R] = []
    while items:
        part, full = room.take(work, items, size), False
        random = _random_state()
        try:
            found.append((yield from run(part)))
        except torch.OutOfMemoryError:
            full = True
        if full:
            _set_random_state(random)
            room.halve(work, size(part), len(part) == 1)
            continue
        room.fits(work)
        items = items[len(part) :]
    return found


def _random_state() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def _set_random_state(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])
