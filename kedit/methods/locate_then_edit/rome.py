"""ROME: Rank-One Model Editing (Meng et al., NeurIPS 2022; baselines 1.3), and p-ROME (baselines 1.4)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kedit.delta.factors import Factors
from kedit.keyvalue import solvers
from kedit.methods.locate_then_edit.single_layer import SingleLayerEditor


class ROME(SingleLayerEditor):
    """Rank-One Model Editing: W' k0 = v* for the bare prompt's key k0, along the mean key's direction.

    Args:
        prompt_keys: Take the direction from the bare prompt's key too, u = C^-1 k0, so that the denominator
            k0^T C^-1 k0 / ||C^-1 k0|| cannot be small ("p-ROME" of the R-ROME paper). False is ROME as published:
            the direction is that of the mean key over the contexts.
        **kwargs: The options of `SingleLayerEditor`.
    """

    def __init__(self, prompt_keys: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prompt_keys = prompt_keys

    def edit_key(self, keys: Tensor) -> Tensor:
        """The bare prompt's key."""
        return keys[0]

    def direction_key(self, keys: Tensor) -> Tensor:
        """The mean key over the contexts, or the bare prompt's with `prompt_keys`."""
        return keys[0] if self.prompt_keys else keys.mean(0)

    def solve(self, keys: Tensor, values: Tensor, v_star: Tensor, direction: Tensor) -> Factors:
        """The published update, with the bare prompt's key in the denominator."""
        return solvers.rome(keys[0], values[0], v_star, direction)

    def describe(self) -> dict[str, Any]:
        """Provenance: whether the direction is the bare prompt's too."""
        return super().describe() | {"prompt_keys": self.prompt_keys}
