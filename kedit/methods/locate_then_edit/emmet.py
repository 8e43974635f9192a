"""EMMET: equality-constrained mass editing (Gupta et al., "A Unified Framework for Model Editing", 2024)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kedit.covariance import Covariance
from kedit.delta.factors import Factors
from kedit.errors import at_least
from kedit.keyvalue import solvers
from kedit.keyvalue.published import MultiLayerDefaults, emmet_defaults
from kedit.methods.locate_then_edit.base import required
from kedit.methods.locate_then_edit.multi_layer import MultiLayerEditor
from kedit.model.lm import LM


class EMMET(MultiLayerEditor):
    """ROME's equality constraint for many requests at once: one layer, Delta K = R, relaxed by a small ridge.

    Args:
        emmet_lambda: Ridge eps on K^T (sC)^-1 K. The published 0.1 makes this MEMIT with lambda = 0.1 s on the
            same layers; 0 is the equality constraint itself, and needs linearly independent keys.
        **kwargs: The options of `MultiLayerEditor`.
    """

    def __init__(self, emmet_lambda: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        at_least("model.emmet_lambda", emmet_lambda, 0)
        self.emmet_lambda = emmet_lambda

    def model_defaults(self, lm: LM) -> MultiLayerDefaults:
        """Published values, or ROME's layer by depth."""
        return emmet_defaults(lm)

    def solve(self, keys: Tensor, residuals: Tensor, cov: Covariance) -> Factors:
        """Delta = R (K^T (sC)^-1 K + eps I)^-1 K^T (sC)^-1, s = `mom2_update_weight`."""
        return solvers.emmet(keys, residuals, cov, required(self.mom2_update_weight), self.emmet_lambda)

    def describe(self) -> dict[str, Any]:
        """Provenance: the ridge too."""
        return super().describe() | {"emmet_lambda": self.emmet_lambda}
