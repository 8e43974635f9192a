"""The optimiser steps of a LoRA edit: cross entropy of the targets' tokens, mini-batch after mini-batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.errors import KeditError
from kedit.forward.logits import lane_rows
from kedit.methods.fine_tuning.lora_adapter import Adapter
from kedit.methods.pac.labels import Labelled, labelled
from kedit.model.lm import LM
from kedit.model.tokenization import Tokens


@dataclass(frozen=True)
class Steps:
    """How an adapter is trained.

    Attributes:
        passes: Over the requests.
        mini_batch: Requests in a step; 0: all.
        lr: Adam's learning rate.
        weight_decay: Adam's.
        stop_loss: Ends after a pass whose mean loss is below; None: never early.
    """

    passes: int
    mini_batch: int
    lr: float
    weight_decay: float
    stop_loss: float | None

    def per_pass(self, n: int) -> int:
        """Optimiser steps of a pass over `n` requests."""
        return -(-n // (self.mini_batch or n))


class LoraPhase:
    """The training of an adapter.

    Args:
        lm: The model.
        adapter: What is trained.
        texts: Prompts with targets.
        how: Passes, mini-batches, Adam's options.
        seed: Of the dropout: what is hidden depends on it and on the number of the step alone.
        earlier: What the weights hold of the adapter as it was: the training takes it out of the model.

    Attributes:
        error: Why it ended early: a loss that is not finite.
        taken: Steps so far.
    """

    def __init__(
        self, lm: LM, adapter: Adapter, texts: Sequence[Tokens], how: Steps, seed: int, earlier: Mapping[str, Factors]
    ) -> None:
        self.lm, self.adapter, self.how, self.seed = lm, adapter, how, seed
        size = how.mini_batch or len(texts)
        self._batches = [labelled(lm, texts[start : start + size]) for start in range(0, len(texts), size)]
        minus = Delta({path: Factors(-own.left, own.right) for path, own in earlier.items()})
        self._bank = BatchedDeltas(lm.model, [minus]) if earlier else None
        self.steps, self.taken = how.passes * len(self._batches), 0
        self.error: KeditError | None = None
        self._losses: list[float] = []

    @property
    def done(self) -> bool:
        """It failed, or what it learned is enough (`stop_loss`)."""
        stop, n = self.how.stop_loss, len(self._batches)
        whole = self.taken > 0 and self.taken % n == 0
        enough = stop is not None and whole and sum(self._losses[-n:]) / n < stop
        return enough or self.error is not None

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam on the adapter."""
        return torch.optim.Adam(self.adapter.parameters(), lr=self.how.lr, weight_decay=self.how.weight_decay)

    def loss(self) -> Tensor | None:
        """Cross entropy of the next mini-batch's targets, and AdaLoRA's term; None where it is not finite (`error`)."""
        batch = self._batches[self.taken % len(self._batches)]
        loss = batch.loss_of(self._logits(batch, self.seed + self.taken))
        value = float(loss.detach())
        if not math.isfinite(value):
            self.error = KeditError(f"the loss is {value} after {self.taken} steps; a smaller model.lr may help")
            return None
        self._losses.append(value)
        penalty = self.adapter.penalty()
        return loss if penalty is None else loss + penalty

    def before_step(self) -> None:
        """Nothing but the adapter has gradients."""

    def after_step(self) -> None:
        """Counts the step."""
        self.taken += 1

    def logs(self) -> dict[str, float]:
        """The last step's cross entropy, before it was taken."""
        return {"loss": self._losses[-1]} if self._losses else {}

    @torch.no_grad()
    def look(self) -> tuple[list[float], list[bool]]:
        """How the texts fare now, without dropout: their losses, and which are answered, every token the argmax.

        Raises:
            KeditError: A loss or the adapter is not finite.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.adapter.parameters()):
            raise KeditError("the adapter is not finite after the last step; a smaller model.lr may help")
        losses: list[float] = []
        answered: list[bool] = []
        for batch in self._batches:
            logits = self._logits(batch, None)
            losses += batch.means(logits).tolist()
            answered += batch.answered(logits).tolist()
        if not all(map(math.isfinite, losses)):
            raise KeditError("the loss is not finite after the last step; a smaller model.lr may help")
        return losses, answered

    def _logits(self, batch: Labelled, dropout_seed: int | None) -> Tensor:
        with self.adapter.installed(dropout_seed), lane_rows(self._bank, [0] * len(batch.ids)):
            return batch.logits(self.lm)
