"""ROME: Rank-One Model Editing (Meng et al., NeurIPS 2022; baselines 1.3)."""

from __future__ import annotations

from torch import Tensor

from kedit import solvers
from kedit.delta import Factors
from kedit.methods.rank_one import RankOne


class ROME(RankOne):
    """Rank-One Model Editing: W' k0 = v* for the bare prompt's key k0, along the mean key's direction."""

    def edit_key(self, keys: Tensor) -> Tensor:
        """The bare prompt's key."""
        return keys[0]

    def solve(self, keys: Tensor, values: Tensor, v_star: Tensor, direction: Tensor) -> Factors:
        """The published update, with the bare prompt's key in the denominator."""
        return solvers.rome(keys[0], values[0], v_star, direction)
