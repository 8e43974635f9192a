"""A method in one file: ridge regression towards the residuals, with the keys of past edits held where they are.

What a newcomer writes for a closed form of their own; `tests/runs/test_one_file.py` runs it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kedit.delta.factors import Factors
from kedit.keyvalue.past_keys import PastKeys
from kedit.keyvalue.published import Published, layers_up_to
from kedit.methods.locate_then_edit.multi_layer import MultiLayerEditor


class Ridge(MultiLayerEditor):
    """Delta = R K^T (K K^T + Kp Kp^T + ridge I)^-1, Kp the keys of the edits before.

    Args:
        ridge: Weight of the size of Delta, above 0.
        **kwargs: The options of `MultiLayerEditor`.
    """

    needs_covariance = False
    published = Published(
        by_depth=lambda lm: {"layers": layers_up_to(lm, 0.5, 2)},
        usual={"v_num_grad_steps": 20, "v_weight_decay": 0.5, "clamp_norm_factor": 0.75, "v_lr": 0.5},
    )

    def __init__(self, ridge: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ridge, self.past = ridge, PastKeys()

    def solve(self, layer: int, keys: Tensor, residuals: Tensor) -> Factors:
        assert self.past is not None
        every = torch.cat([keys, self.past.of(layer, keys)])
        gram = every @ every.T + self.ridge * torch.eye(len(every)).to(every)
        return Factors(residuals.T, torch.linalg.solve(gram, every)[: len(keys)])

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"ridge": self.ridge}
