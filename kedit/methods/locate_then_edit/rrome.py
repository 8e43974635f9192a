"""R-ROME: ROME with the same key everywhere (Gupta et al., "Rebuilding ROME", 2024; baselines 1.4)."""

from __future__ import annotations

from torch import Tensor

from kedit.delta.factors import Factors
from kedit.keyvalue import solvers
from kedit.methods.base.method_card import MethodCard
from kedit.methods.locate_then_edit.rome import ROME
from kedit.methods.locate_then_edit.single_layer import SingleLayerEditor


class RROME(SingleLayerEditor):
    """R-ROME: W' k = v* for the mean key k over the contexts, which is also the key of the denominator."""

    card = MethodCard("Gupta et al., EMNLP Findings 2024", "one FFN matrix, rank 1", ("subject", "statistics"))

    published = ROME.published

    def solve(self, keys: Tensor, values: Tensor, v_star: Tensor, direction: Tensor) -> Factors:
        """The mean key in all three places."""
        return solvers.r_rome(keys.mean(0), values.mean(0), v_star, direction)
