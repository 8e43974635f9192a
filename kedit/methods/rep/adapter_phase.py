"""`AdapterPhase`: the optimiser steps of REP's adapters. Nothing of Lightning in here."""

from __future__ import annotations

import torch
from torch import Tensor

from kedit.methods.rep.train import AdapterTrainer


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
        """Adam, on all tensors at once."""
        return torch.optim.Adam(self.lanes.parameters(), lr=self.lanes.config.lr, foreach=True)

    def loss(self) -> Tensor:
        """Sum over the adapters."""
        return self.lanes.loss()

    def before_step(self) -> None:
        """No gradient is masked."""

    def after_step(self) -> None:
        """Nothing is clamped."""

    def logs(self) -> dict[str, float]:
        """Mean loss and terms over the adapters."""
        figures = {"loss": self.lanes.total, **self.lanes.terms}
        means = torch.stack(list(figures.values())).mean(1).tolist()  # the one thing that a step waits for
        return dict(zip(figures, means, strict=True))
