"""`RectifyPhase`: the optimiser steps between two traces of PAC. Nothing of Lightning in here."""

from __future__ import annotations

import torch
from torch import Tensor

from kedit.errors import KeditError
from kedit.methods.pac.training import RectifyLoop


class RectifyPhase:
    """The training of PAC's nodes between two traces.

    Args:
        loop: The steps.
        optimizer: Adam, which may have been there before.

    Attributes:
        error: Why it ended early: a loss that is not finite.
    """

    def __init__(self, loop: RectifyLoop, optimizer: torch.optim.Optimizer) -> None:
        self.loop, self.steps, self._optimizer = loop, loop.most, optimizer
        self.error: KeditError | None = None

    @property
    def done(self) -> bool:
        """Nothing is left to learn, or it failed."""
        return self.loop.done or self.error is not None

    def optimizer(self) -> torch.optim.Optimizer:
        """The one given."""
        return self._optimizer

    def loss(self) -> Tensor | None:
        """That of T+, of T-, or of both; None where it has failed (`error`), too."""
        try:
            return self.loop.loss()
        except KeditError as error:
            self.error = error
            return None

    def before_step(self) -> None:
        """Leaves gradients to the side that is trained."""
        self.loop.before_step()

    def after_step(self) -> None:
        """Nothing is clamped."""

    def logs(self) -> dict[str, float | Tensor]:
        """Losses and gradient norms when last taken, the norms where they were."""
        return dict(self.loop.terms)
