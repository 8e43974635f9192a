"""PMET's rule for v*: where its targets are the most probable tokens they weigh less, and a small KL ends it (1.7)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kedit.keyvalue.objective import ValueObjective
from kedit.keyvalue.optimization import ValueOptimization
from kedit.keyvalue.terms import NLL, CountedTerm, State

EASED = 0.1  # factor of the NLL of a lane whose targets are met
ENOUGH = 0.01  # KL term (its factor included) at which such a lane is done


class AdaptiveNLL(CountedTerm):
    """`NLL`, times `EASED` in lanes whose targets are met.

    Attributes:
        met: Which lanes of the last evaluation these were: every label of every rewriting row is the most probable
            token, `[m]` bool.
    """

    name = "nll"

    def __init__(self) -> None:
        self.met = torch.zeros(0, dtype=torch.bool)
        self._nll = NLL()

    def __call__(self, state: State) -> Tensor:
        """`[m]`."""
        missed = (state.target_logp < state.label_logp.amax(-1)).float()
        self.met = missed.new_zeros(len(state.lanes)).index_add(0, state.label_lane, missed) == 0
        loss = self._nll(state)
        return torch.where(self.met, EASED * loss, loss)


class AdaptiveValues(ValueOptimization):
    """`ValueOptimization` that is also done with a lane whose targets are met and whose KL term is `ENOUGH` or less.

    Args:
        objective: One of its terms is an `AdaptiveNLL`, another one is called "kl".
        stop_loss: As there.
        clamp_norm_factor: As there.
    """

    def __init__(self, objective: ValueObjective, stop_loss: float = 5e-2, clamp_norm_factor: float = 4.0) -> None:
        super().__init__(objective, stop_loss, clamp_norm_factor)
        (self._nll,) = (term for term in objective.terms if isinstance(term, AdaptiveNLL))

    def finished(self, terms: Mapping[str, Tensor], total: Tensor) -> Tensor:
        """Either of the two, `[m]` bool."""
        return super().finished(terms, total) | (self._nll.met & (terms["kl"] <= ENOUGH))
