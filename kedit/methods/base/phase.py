"""Phases: what of a method's mathematics needs optimiser steps. The protocol, and the barrier between processes.

The phases themselves are in their methods' folders. Nothing of Lightning in here.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from kedit.delta.delta import Delta
from kedit.runtime import distributed


class Phase(Protocol):
    """A part of an edit that needs optimiser steps."""

    steps: int

    @property
    def done(self) -> bool:
        """No further step is needed."""
        ...

    def optimizer(self) -> torch.optim.Optimizer:
        """A fresh optimiser of what the phase trains."""
        ...

    def loss(self) -> Tensor | None:
        """Loss of one step, a scalar to call backward on; None where nothing is left to do."""
        ...

    def before_step(self) -> None:
        """Masks of the gradients, before the optimiser's step."""
        ...

    def after_step(self) -> None:
        """Projections, clamps and freezing, after the optimiser's step."""
        ...

    def logs(self) -> Mapping[str, float | Tensor]:
        """Figures of the last step for the loggers."""
        ...


EditProgram = Generator[Phase, None, list[Delta | None]]
"""What `EditingModule.edit` is: yields phases, returns deltas."""


class Barrier:
    """Where processes that share an edit wait for each other, before they exchange what each has found."""

    steps = 2**31  # never spent: it ends when all are there (`PhaseRunner`)

    @property
    def done(self) -> bool:
        """Nobody has to be waited for."""
        return distributed.world_size() == 1

    def optimizer(self) -> torch.optim.Optimizer:
        """One that changes nothing."""
        return torch.optim.SGD([torch.zeros(1)], lr=0.0)

    def loss(self) -> None:
        """There is none."""

    def before_step(self) -> None:
        """There are no gradients."""

    def after_step(self) -> None:
        """Nothing was changed."""

    def logs(self) -> dict[str, float]:
        """Nothing."""
        return {}
