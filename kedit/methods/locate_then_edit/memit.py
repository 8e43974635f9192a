"""MEMIT: Mass-Editing Memory in a Transformer (Meng et al., ICLR 2023; baselines 1.5)."""

from __future__ import annotations

from torch import Tensor

from kedit.covariance import Covariance
from kedit.delta.factors import Factors
from kedit.keyvalue import solvers
from kedit.keyvalue.published import MultiLayerDefaults, memit_defaults
from kedit.methods.locate_then_edit.base import required
from kedit.methods.locate_then_edit.multi_layer import MultiLayerEditor
from kedit.model.lm import LM


class MEMIT(MultiLayerEditor):
    """Mass-Editing Memory in a Transformer: many requests in one regularised system per layer, over several layers."""

    def model_defaults(self, lm: LM) -> MultiLayerDefaults:
        """Published values, or layers by depth."""
        return memit_defaults(lm)

    def solve(self, keys: Tensor, residuals: Tensor, cov: Covariance) -> Factors:
        """Delta = R K^T (lambda C + K K^T)^-1, lambda = `mom2_update_weight`."""
        return solvers.memit(keys, residuals, cov, required(self.mom2_update_weight))
