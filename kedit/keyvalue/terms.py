"""The loss of v* as a list of terms, each a function of one optimiser step's state (baselines 1.0).

A method chooses its terms; a new one (STEAM's alignment) is a new callable, not a new optimiser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class State:
    """What one forward pass of `m` lanes gives to the terms. Everything is float32.

    Attributes:
        delta: The vectors being optimised, `[m, d]`, those of all sites end to end.
        v_init: What they are added to, `[m, d]`.
        n_sites: How many sites these are.
        label_logp: Log-probabilities where every label of every rewriting row is predicted, `[n_labels, vocab]`.
        target_logp: Log-probability of every label of every rewriting row, `[n_labels]`.
        label_lane: Lane of each label, `[n_labels]`, int64 in 0..m-1.
        label_weight: 1 / (rows of the lane * tokens of its target), `[n_labels]`.
        kl_logp: Next-token log-probabilities at the subject's last token of the KL prompt, `[m, vocab]`.
        kl_reference: The same before the edit, `[m, vocab]`.
        lanes: What number each of the `m` lanes had when the optimisation began, `[m]`, int64.
        hidden: Layer -> residual stream that leaves it where the target's first token is predicted, one row for every
            rewriting row, `[n_rows, d]`; only the layers that a term asks for.
        row_lane: Lane of each of these rows, `[n_rows]`, int64 in 0..m-1.
        bare: Which of these rows are bare prompts, `[n_rows]` bool.
    """

    delta: Tensor
    v_init: Tensor
    n_sites: int
    label_logp: Tensor
    target_logp: Tensor
    label_lane: Tensor
    label_weight: Tensor
    kl_logp: Tensor
    kl_reference: Tensor
    lanes: Tensor
    hidden: Mapping[int, Tensor]
    row_lane: Tensor
    bare: Tensor


class Term(Protocol):
    """One term of the objective."""

    @property
    def name(self) -> str:
        """Labels the term in logs and results."""
        ...

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose states the term reads (`State.hidden`)."""
        ...

    @property
    def counts(self) -> bool:
        """Whether the term is part of the loss that `stop_loss` bounds; one that is not says when it has `settled`."""
        ...

    def settled(self, lanes: Tensor) -> Tensor:
        """Which lanes (by their first numbers, `[m]`) need no further step for this term's sake, `[m]` bool."""
        ...

    def __call__(self, state: State) -> Tensor:
        """Loss of every lane, `[m]`."""
        ...


class CountedTerm:
    """A term that reads no states and is part of the loss that `stop_loss` bounds."""

    @property
    def layers(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def counts(self) -> bool:
        """It does."""
        return True

    def settled(self, lanes: Tensor) -> Tensor:
        """All of them: `stop_loss` decides."""
        return torch.ones_like(lanes, dtype=torch.bool)


@dataclass(frozen=True)
class NLL(CountedTerm):
    """Mean over the rewriting rows of the mean over the target's tokens of -log p(token)."""

    factor: float = 1.0
    name: str = "nll"

    def __call__(self, state: State) -> Tensor:
        """`[m]`."""
        zeros = state.delta.new_zeros(state.delta.shape[0])
        return -self.factor * zeros.index_add(0, state.label_lane, state.target_logp * state.label_weight)


@dataclass(frozen=True)
class KLDivergence(CountedTerm):
    """factor * KL(P_edited || P_original) at the subject's last token of the KL prompt.

    The edited distribution is the first argument, as in ROME's published code.
    """

    factor: float = 0.0625
    name: str = "kl"

    def __call__(self, state: State) -> Tensor:
        """`[m]`."""
        pointwise = F.kl_div(state.kl_reference, state.kl_logp, log_target=True, reduction="none")
        return self.factor * pointwise.sum(-1)


@dataclass(frozen=True)
class WeightDecay(CountedTerm):
    """factor * ||delta|| / ||v_init||^2, summed over the sites; the numerator is not squared (baselines 1.0)."""

    factor: float = 0.5
    name: str = "wd"

    def __call__(self, state: State) -> Tensor:
        """`[m]`. The gradient at delta = 0 is taken as 0."""
        n = state.n_sites
        return (self.factor * norms(state.delta, n) / norms(state.v_init, n) ** 2).sum(1)


def norms(values: Tensor, n_sites: int) -> Tensor:
    """Norm of every site's vector, `[m, n_sites]`, of `values: [m, n_sites * d_model]`."""
    return values.unflatten(-1, (n_sites, -1)).norm(dim=-1)
