"""`ValuePhase`: the optimiser steps of v*, for every method that edits by a value. Nothing of Lightning in here."""

from __future__ import annotations

import torch
from torch import Tensor

from kedit.keyvalue import ValueOptimization


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
        return self.lanes.figures()
