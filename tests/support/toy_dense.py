"""A toy editor that changes whole matrices at random, and a bias where it is told to: what PRUNE and RECT may meet."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from kedit.delta.biases import BiasChange
from kedit.delta.delta import Delta
from kedit.delta.dense import Dense
from kedit.delta.slices import Slices
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.module import EditingModule
from kedit.methods.base.phase import EditProgram
from kedit.model.architecture import weight


class ToyDense(EditingModule):
    """Random changes of one layer's MLP; needs no subject, takes no step.

    Args:
        size: Norm of a change beside that of its matrix.
        kind: What is changed: a whole matrix, some of its columns, or no weight at all.
    """

    usual_regime = "batch"
    needs_subject = False
    steps_per_batch = 1

    def __init__(self, size: float = 1.0, kind: Literal["dense", "columns", "bias"] = "dense") -> None:
        super().__init__()
        self.size, self.kind = size, kind
        self.seen: list[Tensor] = []
        """The weights that each batch was edited on."""
        self.made: list[Delta] = []

    def edit(self, batch: EditBatch) -> EditProgram:
        w = weight(self.lm.arch.module(self.lm.model, "mlp_out", 1)).detach()
        self.seen.append(w.clone())
        found = [self._one(w) for _ in (batch.records if self.regime == "single" else [batch])]
        self.made += found
        return list(found)
        yield

    def _one(self, w: Tensor) -> Delta:
        path = self.lm.arch.path("mlp_out", 1)
        change = torch.randn(w.shape)
        change *= self.size * w.float().norm() / change.norm()
        if self.kind == "bias":
            return Delta({path: BiasChange(torch.randn(len(w)))})
        if self.kind == "columns":
            index = torch.tensor([3, 8])
            return Delta({path: Slices(index, change[:, index].T.contiguous(), 1, (w.shape[0], w.shape[1]))})
        return Delta({path: Dense(change)})

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"size": self.size, "kind": self.kind}
