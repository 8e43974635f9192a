"""EMMET: equality-constrained mass editing (Gupta et al., "A Unified Framework for Model Editing", 2024)."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import Tensor

from kedit.delta.factors import Factors
from kedit.errors import above_zero, at_least
from kedit.keyvalue import solvers
from kedit.keyvalue.published import GPT2_XL, GPT_J, LLAMA_2, LLAMA_3, SMOLLM2, Published
from kedit.methods.base.method_card import MethodCard
from kedit.methods.locate_then_edit.base import required
from kedit.methods.locate_then_edit.multi_layer import MultiLayerEditor
from kedit.methods.locate_then_edit.rome import ROME

_OF_GPT = MappingProxyType({"v_weight_decay": 0.5, "clamp_norm_factor": 0.75})


class EMMET(MultiLayerEditor):
    """ROME's equality constraint for many requests at once: one layer, Delta K = R, relaxed by a small ridge.

    Args:
        mom2_update_weight: s, the weight of the covariance; null: published value.
        emmet_lambda: Ridge eps on K^T (sC)^-1 K. The published 0.1 makes this MEMIT with lambda = 0.1 s on the
            same layers; 0 is the equality constraint itself, and needs linearly independent keys.
        **kwargs: The options of `MultiLayerEditor`.
    """

    card = MethodCard("Gupta et al., EMNLP Findings 2024", "FFN matrices, a rank per fact", ("subject", "statistics"))

    # mom2_update_weight as in the authors' own settings; EasyEdit has 10 000 for gpt2-xl and 100 000 for the others.
    published = Published(
        by_depth=lambda lm: {"layers": (ROME.published.of(lm)["layer"],), "mom2_update_weight": 1},
        usual={"v_num_grad_steps": 25, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0, "v_lr": 0.5},
        models={
            GPT2_XL: {"layers": (17,), "mom2_update_weight": 1000, "v_num_grad_steps": 20, **_OF_GPT},
            GPT_J: {"layers": (5,), "mom2_update_weight": 1, **_OF_GPT},
            LLAMA_2: {"layers": (5,), "mom2_update_weight": 1},
            LLAMA_3: {"layers": (5,), "mom2_update_weight": 100_000, **_OF_GPT},
            SMOLLM2: {"layers": (4, 5, 6, 7, 8), "mom2_update_weight": 500},  # our choice: methods_tuning.yaml
        },
    )

    def __init__(self, mom2_update_weight: float | None = None, emmet_lambda: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        above_zero("model.mom2_update_weight", mom2_update_weight)
        at_least("model.emmet_lambda", emmet_lambda, 0)
        self.mom2_update_weight, self.emmet_lambda = mom2_update_weight, emmet_lambda

    def solve(self, layer: int, keys: Tensor, residuals: Tensor) -> Factors:
        """Delta = R (K^T (sC)^-1 K + eps I)^-1 K^T (sC)^-1, s = `mom2_update_weight`."""
        scale = required(self.mom2_update_weight)
        return solvers.emmet(keys, residuals, self.covariances[layer], scale, self.emmet_lambda)

    def describe(self) -> dict[str, Any]:
        """Provenance: s and the ridge too."""
        own = {"mom2_update_weight": self.mom2_update_weight, "emmet_lambda": self.emmet_lambda}
        return super().describe() | own
