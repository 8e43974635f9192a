"""MEMIT: Mass-Editing Memory in a Transformer (Meng et al., ICLR 2023; baselines 1.5)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from kedit.delta.factors import Factors
from kedit.errors import KeditError, above_zero
from kedit.keyvalue import solvers
from kedit.keyvalue.growing_inverse import WeighedCovariance
from kedit.keyvalue.past_keys import PastKeys
from kedit.keyvalue.published import (
    GPT2_XL,
    GPT_J,
    LLAMA_2,
    LLAMA_3,
    MISTRAL,
    QWEN_2,
    SMOLLM2,
    Published,
    layers_up_to,
    shape_of,
)
from kedit.methods.base.method_card import MethodCard
from kedit.methods.locate_then_edit.base import required
from kedit.methods.locate_then_edit.multi_layer import MultiLayerEditor
from kedit.model.lm import LM


def _by_depth(lm: LM) -> Mapping[str, Any]:
    """The five layers up to a quarter of the depth, and a lambda for the width of the keys.

    Lambda grows with that width from the 15 000 of Llama-2-7B (width 11 008): k^T C^-1 k, which lambda is weighed
    against, is that width on average.
    """
    return {"layers": layers_up_to(lm, 0.25, 5), "mom2_update_weight": 15_000 * shape_of(lm)[-1] / 11_008}


_OF_GPT = MappingProxyType({"v_weight_decay": 0.5, "clamp_norm_factor": 0.75})
_OF_7B = MappingProxyType({"layers": (4, 5, 6, 7, 8), "mom2_update_weight": 15_000})


class MEMIT(MultiLayerEditor):
    """Mass-Editing Memory in a Transformer: many requests in one regularised system per layer, over several layers.

    Args:
        mom2_update_weight: lambda, the weight of the covariance; null: published value.
        past_keys: In a sequential run, hold what earlier edits wrote: their keys join the covariance (MEMIT-seq).
        **kwargs: The options of `MultiLayerEditor`.
    """

    card = MethodCard("Meng et al., ICLR 2023", "FFN matrices, a rank per fact", ("subject", "statistics"))

    published = Published(
        by_depth=_by_depth,
        usual={"v_num_grad_steps": 25, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0, "v_lr": 0.5},
        models={
            GPT2_XL: {
                "layers": (13, 14, 15, 16, 17),
                "mom2_update_weight": 20_000,
                "v_num_grad_steps": 20,
                **_OF_GPT,
            },
            GPT_J: {"layers": (3, 4, 5, 6, 7, 8), "mom2_update_weight": 15_000, **_OF_GPT},
            LLAMA_2: _OF_7B,
            LLAMA_3: {**_OF_7B, **_OF_GPT, "v_lr": 0.1},
            MISTRAL: _OF_7B,
            QWEN_2: _OF_7B,
            SMOLLM2: {**_OF_7B, "mom2_update_weight": 500},  # our choice: methods_tuning.yaml
        },
    )

    def __init__(self, mom2_update_weight: float | None = None, past_keys: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        above_zero("model.mom2_update_weight", mom2_update_weight)
        self.mom2_update_weight = mom2_update_weight
        self.past = PastKeys() if past_keys else None

    def setup(self, stage: str) -> None:
        """Refuses a memory that would stay empty."""
        if self.past is not None and self.regime != "sequential":
            raise KeditError(f"model.past_keys: in the regime {self.regime} no edit comes after another; leave it out")
        super().setup(stage)

    def solve(self, layer: int, keys: Tensor, residuals: Tensor) -> Factors:
        """Delta = R K^T (lambda C + Kp Kp^T + K K^T)^-1, lambda = `mom2_update_weight`; Kp only with `past_keys`."""
        cov, lam = self.covariances[layer], required(self.mom2_update_weight)
        if self.past is None:
            return solvers.memit(keys, residuals, cov, lam)
        return Factors(residuals.T, self.past.gains(layer, keys, WeighedCovariance(cov, lam)))

    def describe(self) -> dict[str, Any]:
        """Provenance: lambda and the memory too."""
        past = {} if self.past is None else {"past_keys": True}
        return super().describe() | {"mom2_update_weight": self.mom2_update_weight} | past
