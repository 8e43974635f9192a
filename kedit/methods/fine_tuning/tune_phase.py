"""`TunePhase`: the optimiser steps of fine-tuning: mini-batches of requests, or a request of its own in each lane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kedit.forward.cached_inputs import CachedInputs
from kedit.forward.logits import default_batch_tokens, frozen
from kedit.methods.fine_tuning.all_parameters import AllParameters
from kedit.methods.fine_tuning.dense_changes import DenseChanges
from kedit.methods.fine_tuning.texts import Loss, Text, wanted
from kedit.model.lm import LM


@dataclass(frozen=True)
class Recipe:
    """How fine-tuning goes.

    Attributes:
        passes: How often every request is seen.
        lr: Adam's learning rate.
        mini_batch: Requests of a step; without meaning in lanes.
        shuffled: Whether each pass has an order of its own.
        loss: What a step takes the mean of: over the tokens of its targets (`target_new`), or over its requests, of
            each the mean over its target's tokens (`prompt_last`).
        stop_loss: A step with a smaller loss is not made, and a pass with a smaller mean is the last; 0: never.
    """

    passes: int
    lr: float
    mini_batch: int = 1
    shuffled: bool = False
    loss: Loss = "target_new"
    stop_loss: float = 0.0


class TunePhase:
    """Steps of Adam on some requests.

    In lanes every request has changes of its own, and its steps are those that it would have by itself. Otherwise all
    train the same ones.

    Args:
        lm: The model.
        weights: What is trained.
        texts: The requests, at least one.
        recipe: How.
        in_lanes: Whether request i trains lane i of `weights`.
        first: The lowest layer with something to train; those below run once. 0 runs the whole model in every step.
        generator: Shuffles.

    Attributes:
        losses: Of each request, mean of -log p over its target's tokens when last seen.
        taken: Steps that the weights of each request have had.
        failed: Requests with a loss that was not finite.
    """

    def __init__(
        self,
        lm: LM,
        weights: DenseChanges | AllParameters,
        texts: Sequence[Text],
        recipe: Recipe,
        in_lanes: bool,
        first: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.weights, self.texts, self.recipe, self.in_lanes = weights, texts, recipe, in_lanes
        self.inputs = CachedInputs(lm, [text.ids for text in texts], first)
        self.steps = recipe.passes * (1 if in_lanes else -(-len(texts) // recipe.mini_batch))
        self.done = False
        self.losses = [math.nan] * len(texts)
        self.taken = [0] * len(texts)
        self.failed: set[int] = set()
        self._lm, self._generator = lm, generator
        self._open = set(range(len(texts)))
        self._current: list[int] = []
        self._last = math.nan
        self._passes = recipe.passes  # that are left
        self._queue: list[list[int]] = []  # what is left of the pass under way
        self._sum = 0.0  # of the losses of its requests

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam; the decay of weights is in `before_step`, as what is trained are changes of them."""
        return torch.optim.Adam(self.weights.parameters(), lr=self.recipe.lr, foreach=False)

    def loss(self) -> Tensor | None:
        """The loss of the next step; None where there is none to make."""
        while (index := self._next()) is not None:
            found = self._own(index) if self.in_lanes else self._joint(index)
            if found is not None:
                return found
            if self.failed and not self.in_lanes:
                break
        self.done = True
        return None

    def before_step(self) -> None:
        """Leaves a gradient to what is trained in this step alone, and decays weights."""
        self.weights.before_step(self._current if self.in_lanes else [0])

    def after_step(self) -> None:
        """Clamps, and counts the step."""
        if self.done:
            return
        self.weights.after_step()
        for i in self._current if self.in_lanes else range(len(self.texts)):
            self.taken[i] += 1

    def logs(self) -> dict[str, float]:
        """Loss of the step: in lanes, the mean of those that are trained."""
        return {"loss": self._last, "requests": float(len(self._current))}

    def close(self) -> None:
        """Looks at all requests once more, so that `losses` are those of the changes as they are delivered."""
        with frozen(self._lm.model):
            for index in self._parts(range(len(self.texts))):
                for i, loss in zip(index, self._means(index).tolist(), strict=True):
                    self.losses[i] = loss
                    if not math.isfinite(loss):
                        self.failed.add(i)

    def _own(self, index: list[int]) -> Tensor | None:
        """Sum of the losses of the lanes that go on."""
        parts = self._parts(index)
        means = torch.cat([self._means(part) for part in parts])
        order = [i for part in parts for i in part]
        self._current = []
        for place, (i, loss) in enumerate(zip(order, means.tolist(), strict=True)):
            self.losses[i] = loss
            if not math.isfinite(loss):
                self.failed.add(i)
            if math.isfinite(loss) and loss >= self.recipe.stop_loss:
                self._current.append(i)
            else:
                self._open.discard(i)
                order[place] = -1
        if not self._current:
            return None
        total = means[[place for place, i in enumerate(order) if i >= 0]].sum()
        self._last = float(total.detach()) / len(self._current)
        return total

    def _joint(self, index: list[int]) -> Tensor | None:
        """Mean over the requests of a mini-batch, or over their tokens; None where it is small, or not finite."""
        parts = self._parts(index)
        sums = torch.cat([self._sums(part) for part in parts])
        order = [i for part in parts for i in part]
        counts = sums.new_tensor([len(self.texts[i].labels) for i in order])
        means = sums / counts
        loss = means.mean() if self.recipe.loss == "prompt_last" else sums.sum() / counts.sum()
        self._last, self._current = float(loss.detach()), index
        self._sum += self._last * len(index)
        for i, value in zip(order, means.tolist(), strict=True):
            self.losses[i] = value
        if not math.isfinite(self._last):
            self.failed |= self._open
            return None
        return None if self._last < self.recipe.stop_loss else loss

    def _means(self, index: Sequence[int]) -> Tensor:
        sums = self._sums(index)
        return sums / sums.new_tensor([len(self.texts[i].labels) for i in index])

    def _sums(self, index: Sequence[int]) -> Tensor:
        """Sum of -log p of each target of some requests, `[len(index)]`, from one pass."""
        labels = wanted([self.texts[i] for i in index], self._lm.device)
        with self.weights.installed(index if self.in_lanes else [0] * len(index)):
            return labels.sums(self.inputs.logits(index, labels.rows, labels.cols))

    def _parts(self, index: Sequence[int]) -> list[list[int]]:
        """Requests of like lengths side by side, in passes of bounded padded tokens."""
        order = sorted(index, key=lambda i: len(self.texts[i].ids), reverse=True)
        budget, parts = default_batch_tokens(self._lm.device), []
        while order:
            most = max(1, budget // len(self.texts[order[0]].ids))
            parts.append(order[:most])
            order = order[most:]
        return parts

    def _next(self) -> list[int] | None:
        """The requests of the next step; None where there is none."""
        if self.in_lanes:
            self._passes -= 1
            return sorted(self._open) if self._open and self._passes >= 0 else None
        if not self._queue and not self._begin_pass():
            return None
        return self._queue.pop(0)

    def _begin_pass(self) -> bool:
        """Fills the queue, unless no pass is left or the mean loss of the last one was small."""
        n, size, r = len(self.texts), self.recipe.mini_batch, self.recipe
        begun = self._passes < r.passes
        if self._passes == 0 or (begun and self._sum / n < r.stop_loss):
            return False
        self._passes, self._sum = self._passes - 1, 0.0
        order = torch.randperm(n, generator=self._generator).tolist() if r.shuffled else list(range(n))
        self._queue = [order[start : start + size] for start in range(0, n, size)]
        return True
