"""What the steps of REP's adapters choose by chance, drawn ahead on the host and handed to the device at once.

Every lane has a stream of its own, so that lanes do not see each other. Which numbers it gives does not depend on how
many steps are drawn at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

AHEAD = 2**27  # numbers of dropout masks that are drawn at a time, at most; one byte each


@dataclass(frozen=True)
class LaneSizes:
    """How much there is for a lane to choose from.

    Attributes:
        positives: Rows, one of which is drawn before any is drawn again.
        hard_negatives: Rows, drawn with replacement.
        negatives: The same.
    """

    positives: int
    hard_negatives: int
    negatives: int


@dataclass(frozen=True)
class StepDraws:
    """Choices of some steps. Rows are counted over the tables of all lanes, one lane after another.

    Attributes:
        positives: `[steps, n, P]` int64.
        kept: Numbers that dropout leaves, `[steps, n, P + 1, D]` bool; None without dropout.
        hard_negatives: `[steps, n, M]` int64; None where none are drawn.
        negatives: The same.
    """

    positives: Tensor
    kept: Tensor | None
    hard_negatives: Tensor | None
    negatives: Tensor | None


class Draws:
    """The choices of all steps.

    Args:
        randoms: The stream of each lane, on the CPU.
        sizes: Of each lane.
        device: Where the choices are needed.
        steps: How many are foreseen; there may be more.
        positives: Rows in a step.
        negatives: Rows of either kind in a step; 0: none.
        dropout: Share of numbers left out.
        width: Of a key.
    """

    def __init__(
        self, randoms: Sequence[torch.Generator], sizes: Sequence[LaneSizes], device: torch.device, steps: int,
        positives: int, negatives: int, dropout: float, width: int,
    ) -> None:  # fmt: skip
        self._randoms, self._sizes, self._device, self._steps = list(randoms), list(sizes), device, steps
        self._positives, self._negatives, self._dropout, self._width = positives, negatives, dropout, width
        self._queues: list[list[int]] = [[] for _ in sizes]
        self._first, self._drawn = 0, 0
        self._ahead: StepDraws | None = None

    def step(self, number: int) -> StepDraws:
        """Choices of a step, without the leading dimension; steps come in their order, from 0."""
        if self._ahead is None or number >= self._drawn:
            masks = len(self._sizes) * (self._positives + 1) * self._width if self._dropout else 1
            count = max(1, min(self._steps - number, AHEAD // masks))
            self._first, self._drawn, self._ahead = number, number + count, self._draw(count)
        parts = (None if part is None else part[number - self._first] for part in vars(self._ahead).values())
        return StepDraws(*parts)  # type: ignore[arg-type]

    def _draw(self, count: int) -> StepDraws:
        n, m = len(self._sizes), self._negatives
        positives = torch.empty(count, n, self._positives, dtype=torch.int64)
        shape = (count, n, self._positives + 1, self._width)
        kept = torch.empty(shape, dtype=torch.bool) if self._dropout else None
        hard, far = (torch.empty(count, n, m, dtype=torch.int64) if m else None for _ in range(2))
        before = LaneSizes(0, 0, 0)
        for lane, (random, size) in enumerate(zip(self._randoms, self._sizes, strict=True)):
            for step in range(count):  # a step's draws, in the order of its work
                positives[step, lane] = torch.tensor(self._pick(lane)) + before.positives
                if kept is not None:
                    kept[step, lane] = torch.rand(shape[2:], generator=random) < 1.0 - self._dropout
                if hard is not None and far is not None:
                    hard[step, lane] = torch.randint(size.hard_negatives, (m,), generator=random)
                    hard[step, lane] += before.hard_negatives
                    far[step, lane] = torch.randint(size.negatives, (m,), generator=random) + before.negatives
            before = LaneSizes(
                before.positives + size.positives,
                before.hard_negatives + size.hard_negatives,
                before.negatives + size.negatives,
            )
        drawn = (None if part is None else part.to(self._device) for part in (positives, kept, hard, far))
        return StepDraws(*drawn)  # type: ignore[arg-type]

    def _pick(self, lane: int) -> list[int]:
        """The next slice of the lane's shuffled positives; shuffled again when they are used up."""
        rows: list[int] = []
        while len(rows) < self._positives:
            if not self._queues[lane]:
                order = torch.randperm(self._sizes[lane].positives, generator=self._randoms[lane])
                self._queues[lane] = order.tolist()
            rows.append(self._queues[lane].pop())
        return rows
