"""`ValuePhase`: the optimiser steps of v*, for every method that edits by a value. Nothing of Lightning in here."""

from __future__ import annotations

import torch
from torch import Tensor

from kedit.forward.recompute import recomputing
from kedit.keyvalue import ValueOptimization


class ValuePhase:
    """The optimisation of v*: Adam on one vector per lane.

    Args:
        lanes: The vectors and their losses.
        lr: Adam's learning rate.
        evaluations: Evaluations of the loss. The published loops evaluate once more than they update, so
            this makes `evaluations - 1` optimiser steps.
        recompute: Let the layers above the sites run twice and keep nothing in between.
    """

    def __init__(self, lanes: ValueOptimization, lr: float, evaluations: int, recompute: bool = False) -> None:
        self.lanes, self.lr, self.steps = lanes, lr, evaluations - 1
        objective = lanes.objective
        above = max(site.layer for site in objective.sites) + 1  # no hook of the step is in these
        self._recomputed = range(above, objective.lm.arch.n_layers if recompute else above)

    @property
    def done(self) -> bool:
        """Every lane has converged."""
        return self.lanes.done

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam without weight decay (the decay is a term of the loss)."""
        return torch.optim.Adam([self.lanes.delta], lr=self.lr)

    def loss(self) -> Tensor:
        """Sum over the lanes that still run."""
        with recomputing(self.lanes.objective.lm, self._recomputed):
            return self.lanes.loss()

    def before_step(self) -> None:
        """No gradient is masked."""

    def after_step(self) -> None:
        """Clamps and freezes."""
        self.lanes.after_step()

    def logs(self) -> dict[str, float]:
        """Mean loss and terms over the lanes, and how many still run."""
        return self.lanes.figures()
