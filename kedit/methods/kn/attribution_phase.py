"""`AttributionPhase`: one backward pass for each layer, and nothing that is trained. Nothing of Lightning in here."""

from __future__ import annotations

import torch
from torch import Tensor

from kedit.methods.kn.attribution import Attribution


class AttributionPhase:
    """The gradients of an attribution, a layer a step.

    Args:
        attribution: Where they go.
    """

    def __init__(self, attribution: Attribution) -> None:
        self.attribution, self.steps = attribution, attribution.lm.arch.n_layers
        self._p = 0.0
        self._asked = False

    @property
    def done(self) -> bool:
        """All layers have been looked at."""
        return self.attribution.done

    def optimizer(self) -> torch.optim.Optimizer:
        """One that changes nothing, and forgets the gradient of the step before."""
        return torch.optim.SGD([self.attribution.scaled], lr=0.0)

    def loss(self) -> Tensor | None:
        """Minus the sum of p; None where all layers are done."""
        self._asked = not self.done
        if not self._asked:
            return None
        loss = self.attribution.loss()
        self._p = -float(loss.detach()) / len(self.attribution.scaled)
        return loss

    def before_step(self) -> None:
        """Takes the gradient up."""
        if self._asked:
            self.attribution.take()

    def after_step(self) -> None:
        """Nothing was changed."""

    def logs(self) -> dict[str, float]:
        """Mean p over points and scales."""
        return {"p": self._p}
