"""PMET: Precise Model Editing in a Transformer (Li et al., AAAI 2024; baselines 1.7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from kedit.errors import at_least
from kedit.forward.replay import Site
from kedit.keyvalue import KLDivergence, Term, ValueObjective, ValueOptimization, WeightDecay
from kedit.keyvalue.adaptive import AdaptiveNLL, AdaptiveValues
from kedit.keyvalue.published import GPT_J, GPT_NEOX, LLAMA_2, SMOLLM2, Published
from kedit.methods.base.method_card import MethodCard
from kedit.methods.locate_then_edit.base import required
from kedit.methods.locate_then_edit.memit import MEMIT
from kedit.request import EditRecord

_LLAMA_2 = MappingProxyType({"layers": (4, 5, 6, 7, 8), "mom2_update_weight": 15_000})


class PMET(MEMIT):
    """MEMIT whose v* leaves attention and MLP apart: both are optimised, and the weights take over the MLP's alone.

    Args:
        mom2_update_weight: lambda, the weight of the covariance; null: published value.
        kl_factor: Factor of the KL term that keeps "{subject} is a" as it was; null: published value.
        past_keys: In a sequential run, hold what earlier edits wrote: their keys join the covariance, as in MEMIT.
        **kwargs: The options of `MultiLayerEditor`.
    """

    card = MethodCard("Li et al., AAAI 2024", "FFN matrices, a rank per fact", ("subject", "statistics"))

    # gpt-j, gpt-neox: the authors' settings; llama-2, and with it all others: EasyEdit's.
    published = Published(
        by_depth=MEMIT.published.by_depth,
        usual={
            "v_lr": 0.5,
            "v_num_grad_steps": 20,
            "v_weight_decay": 0.5,
            "clamp_norm_factor": 1.0,
            "kl_factor": 0.0625,
        },
        models={
            GPT_J: {
                "layers": (3, 4, 5, 6, 7, 8),
                "mom2_update_weight": 6000,
                "v_lr": 0.2,
                "v_num_grad_steps": 30,
                "clamp_norm_factor": 0.75,
                "kl_factor": 1.0,
            },
            GPT_NEOX: {
                "layers": (6, 7, 8, 9, 10),
                "mom2_update_weight": 15_000,
                "v_num_grad_steps": 30,
                "clamp_norm_factor": 0.8,
                "kl_factor": 0.8,
            },
            LLAMA_2: _LLAMA_2,
            SMOLLM2: {**_LLAMA_2, "mom2_update_weight": 500},  # our choice: methods_tuning.yaml
        },
    )

    def __init__(
        self,
        mom2_update_weight: float | None = None,
        kl_factor: float | None = None,
        past_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(mom2_update_weight, past_keys, **kwargs)
        at_least("model.kl_factor", kl_factor, 0.0)
        self.kl_factor = kl_factor

    def sites(self) -> list[Site]:
        """Two vectors in the last edited layer; the weights are solved for the MLP's value."""
        return [Site("attn", self._layers[-1]), Site("mlp", self._layers[-1])]

    def divisor(self, left: int) -> float:
        """The root of MEMIT's: the first layers take over more."""
        return math.sqrt(left)

    def terms(self, records: Sequence[EditRecord]) -> list[Term]:
        """MEMIT's loss with an NLL that weighs less where targets are met; the decay is summed over both vectors."""
        kl, decay = KLDivergence(required(self.kl_factor)), WeightDecay(required(self.v_weight_decay))
        return [AdaptiveNLL(), kl, decay, *self.more_terms(records)]

    def optimization(self, objective: ValueObjective) -> ValueOptimization:
        """Stops early by PMET's rule too."""
        return AdaptiveValues(objective, self.stop_loss, required(self.clamp_norm_factor))
