"""AlphaEdit: null-space constrained editing (Fang et al., ICLR 2025; baselines 1.10)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from kedit.delta.factors import Factors
from kedit.errors import KeditError, above_zero
from kedit.keyvalue.growing_inverse import WithinNullSpace
from kedit.keyvalue.past_keys import PastKeys
from kedit.keyvalue.published import GPT2_XL, GPT_J, LLAMA_3, QWEN_2, SMOLLM2, Published
from kedit.methods.base.method_card import MethodCard
from kedit.methods.locate_then_edit.base import required
from kedit.methods.locate_then_edit.memit import MEMIT
from kedit.methods.locate_then_edit.multi_layer import MultiLayerEditor
from kedit.model.lm import LM

log = logging.getLogger(__name__)

_THRESHOLDS = ("nullspace_threshold", "nullspace_relative")
_OF_V = MEMIT.published.without("mom2_update_weight")  # the authors: a new model begins with its MEMIT's


def _by_depth(lm: LM) -> Mapping[str, Any]:
    """MEMIT's layers; a threshold that does not depend on the scale of the model's keys, which nobody has looked at."""
    return {**_OF_V.by_depth(lm), "nullspace_relative": 1.0}


def _row(shape: Any, **own: Any) -> MappingProxyType[str, Any]:
    return MappingProxyType({**_OF_V.models[shape], "nullspace_threshold": 2e-2, **own})


class AlphaEdit(MultiLayerEditor):
    """MEMIT's loop with changes that act only where ordinary keys hardly are, and that hold what was edited before.

    Args:
        nullspace_threshold: A direction belongs to the null space where ordinary keys have a second moment below
            this. It is absolute, so that what it keeps depends on the scale of a model's keys. null: published value.
        nullspace_relative: The same, in units of the mean second moment over all directions of the layer's keys,
            in place of `nullspace_threshold`.
        l2: Weight of the size of the change; null: published value.
        **kwargs: The options of `MultiLayerEditor`.
    """

    card = MethodCard("Fang et al., ICLR 2025", "FFN matrices, a rank per fact", ("subject", "statistics"))

    usual_regime = "sequential"
    needs_inverse = False
    found_out = (*MultiLayerEditor.found_out, "nullspace_rank")

    # gpt2-xl, gpt-j, llama-3: the authors' settings; qwen2.5: EasyEdit's.
    published = Published(
        by_depth=_by_depth,
        usual={**_OF_V.usual, "l2": 10.0},
        models={
            GPT2_XL: _row(GPT2_XL),
            GPT_J: _row(GPT_J),
            LLAMA_3: _row(LLAMA_3),
            QWEN_2: _row(QWEN_2, l2=1.0),
            SMOLLM2: _row(SMOLLM2),  # our choice: the papers' values serve here too (docs/methods/alphaedit.md)
        },
    )

    def __init__(
        self,
        nullspace_threshold: float | None = None,
        nullspace_relative: float | None = None,
        l2: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        above_zero("model.nullspace_threshold", nullspace_threshold)
        above_zero("model.nullspace_relative", nullspace_relative)
        above_zero("model.l2", l2)
        if nullspace_threshold is not None and nullspace_relative is not None:
            raise KeditError("model.nullspace_threshold: nullspace_relative stands in its place; give one of the two")
        self.nullspace_threshold, self.nullspace_relative, self.l2 = nullspace_threshold, nullspace_relative, l2
        self.past = PastKeys()
        self.spaces: dict[int, WithinNullSpace] = {}

    def setup(self, stage: str) -> None:
        """The published threshold only where the user gave none of the two."""
        given = {name: getattr(self, name) for name in _THRESHOLDS}
        super().setup(stage)
        if any(value is not None for value in given.values()):
            vars(self).update(given)

    def start(self) -> None:
        """Contexts and null spaces, all of the unedited model."""
        super().start()
        for layer, cov in self.covariances.items():
            threshold = self.nullspace_threshold
            if threshold is None:
                threshold = required(self.nullspace_relative) * float(cov.mean.diagonal().double().mean())
            try:
                space = cov.null_space(threshold)
            except KeditError as error:
                option = _THRESHOLDS[self.nullspace_threshold is None]
                raise KeditError(f"model.{option}: {error}") from None
            self.spaces[layer] = WithinNullSpace(space, required(self.l2))
            log.info(
                "layer %d: %d of %d directions are in the null space (second moment below %.3g)",
                layer, space.rank, cov.d_in, threshold,
            )  # fmt: skip
            if space.rank == cov.d_in:
                log.warning("layer %d: that is all of them, so nothing protects ordinary keys", layer)
        self.covariances.clear()  # what is needed of them is in the null spaces

    def solve(self, layer: int, keys: Tensor, residuals: Tensor) -> Factors:
        """Delta = R K^T P (Kp Kp^T P + K K^T P + l2 I)^-1."""
        assert self.past is not None
        return Factors(residuals.T, self.past.gains(layer, keys, self.spaces[layer]))

    def describe(self) -> dict[str, Any]:
        """Provenance: threshold, ridge, and how many directions are kept in each layer."""
        return super().describe() | {
            "nullspace_threshold": self.nullspace_threshold,
            "nullspace_relative": self.nullspace_relative,
            "l2": self.l2,
            "nullspace_rank": {str(layer): metric.space.rank for layer, metric in self.spaces.items()},
        }
