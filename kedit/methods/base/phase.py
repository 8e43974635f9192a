"""Phases: what of a method's mathematics needs optimiser steps. The protocol, and the phases that methods share."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

import torch
from torch import Tensor

from kedit.delta.delta import Delta
from kedit.errors import KeditError
from kedit.keyvalue import ValueOptimization
from kedit.methods.pac import RectifyLoop
from kedit.methods.rep import AdapterTrainer
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

    def logs(self) -> dict[str, float]:
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


class ValuePhase:
    """The optimisation of v*: Adam on one vector per lane.

    Args:
        lanes: The vectors and their losses.
        lr: Adam's learning rate.
        evaluations: Evaluations of the loss. The published loops evaluate once more than they update, so
            this makes `evaluations - 1` optimiser steps.
    """

    def __init__(self, lanes: ValueOptimization, lr: float, evaluations: int) -> None:
        self.lanes, self.lr, self.steps = lanes, lr, evaluations - 1

    @property
    def done(self) -> bool:
        """Every lane has converged."""
        return self.lanes.done

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam without weight decay (the decay is a term of the loss)."""
        return torch.optim.Adam([self.lanes.delta], lr=self.lr)

    def loss(self) -> Tensor:
        """Sum over the lanes that still run."""
        return self.lanes.loss()

    def before_step(self) -> None:
        """No gradient is masked."""

    def after_step(self) -> None:
        """Clamps and freezes."""
        self.lanes.after_step()

    def logs(self) -> dict[str, float]:
        """Mean loss and terms over the lanes, and how many still run."""
        logs = {"loss": float(self.lanes.total.nanmean()), "lanes": float(self.lanes.running.sum())}
        return logs | {name: float(value.nanmean()) for name, value in self.lanes.terms.items()}


class AdapterPhase:
    """The training of REP's adapters: Adam, one step on every lane at once.

    Args:
        lanes: The adapters and their losses.
    """

    def __init__(self, lanes: AdapterTrainer) -> None:
        self.lanes, self.steps = lanes, lanes.config.steps

    @property
    def done(self) -> bool:
        """There is nothing to train, or every step was taken."""
        return self.lanes.step >= self.steps or not self.lanes.parameters()

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.lanes.parameters(), lr=self.lanes.config.lr)

    def loss(self) -> Tensor:
        """Sum over the adapters."""
        return self.lanes.loss()

    def before_step(self) -> None:
        """No gradient is masked."""

    def after_step(self) -> None:
        """Nothing is clamped."""

    def logs(self) -> dict[str, float]:
        """Mean loss and terms over the adapters."""
        means = {name: float(value.mean()) for name, value in self.lanes.terms.items()}
        return {"loss": float(self.lanes.total.mean())} | means


class RectifyPhase:
    """The training of PAC's nodes between two traces.

    Args:
        course: The steps.
        optimizer: Adam, which may have been there before.

    Attributes:
        error: Why it ended early: a loss that is not finite.
    """

    def __init__(self, course: RectifyLoop, optimizer: torch.optim.Optimizer) -> None:
        self.course, self.steps, self._optimizer = course, course.most, optimizer
        self.error: KeditError | None = None

    @property
    def done(self) -> bool:
        """Nothing is left to learn, or it failed."""
        return self.course.done or self.error is not None

    def optimizer(self) -> torch.optim.Optimizer:
        """The one given."""
        return self._optimizer

    def loss(self) -> Tensor | None:
        """That of T+, of T-, or of both; None where it has failed (`error`), too."""
        try:
            return self.course.loss()
        except KeditError as error:
            self.error = error
            return None

    def before_step(self) -> None:
        """Leaves gradients to the side that is trained."""
        self.course.before_step()

    def after_step(self) -> None:
        """Nothing is clamped."""

    def logs(self) -> dict[str, float]:
        """Losses and gradient norms when last taken."""
        return dict(self.course.terms)
