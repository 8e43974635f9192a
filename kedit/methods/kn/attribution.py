"""Integrated gradients of the neurons: how much each of them adds to p(answer) at the prompt's last token.

IG(l, i) = a_i / m * sum_j d p / d a_i, taken where all activations a of layer l are scaled by linspace(0, 1, m)_j. Only
the last token's are scaled, so that the tokens before it are run once (`Replay`); the m scaled copies of a layer, and
all answers that are looked at together, are rows of one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kedit.forward.replay import Replay, Row
from kedit.methods.kn.neurons import neuron_map, neurons_per_layer
from kedit.model.lm import LM
from kedit.model.tokenization import Tokens


@dataclass(frozen=True)
class Point:
    """A token of an answer, looked at from the token before it.

    Attributes:
        of: What it belongs to: a record and one of its prompts.
        ids: The prompt and the answer's tokens before this one.
        token: This one.
        share: 1 over the number of the answer's tokens: attributions are their mean.
    """

    of: tuple[int, int]
    ids: tuple[int, ...]
    token: int
    share: float


def points_of(of: tuple[int, int], prompt: Tokens, answer: Sequence[int]) -> list[Point]:
    """The points of an answer, teacher-forced.

    Args:
        of: As in `Point`.
        prompt: Only its prompt counts, not its target.
        answer: Token ids.
    """
    before = prompt.ids[: prompt.n_prompt]
    return [Point(of, (*before, *answer[:t]), token, 1 / len(answer)) for t, token in enumerate(answer)]


def points_at_once(steps: int, device: torch.device) -> int:
    """How many points share a batch of at most 128 rows (256 on a GPU), of which each has `steps`; at least one."""
    return max(1, (128 if device.type == "cpu" else 256) // steps)


class Attribution:
    """Attributions of all neurons at some points, a layer for each step.

    Args:
        lm: The model, with the weights that it should have.
        points: What is looked at together.
        steps: m.

    Attributes:
        scaled: The scaled activations of the layer at hand, `[n_points * steps, d_in]`; its gradient is what counts.
        layer: The layer at hand.
        scores: Attributions, `[n_points, n_layers, d_in]`; zero where a layer was not reached.
        probabilities: p(token) of every point, `[n_points]`.
    """

    def __init__(self, lm: LM, points: Sequence[Point], steps: int) -> None:
        self.lm, self.points, self.steps = lm, list(points), steps
        dtype = torch.promote_types(lm.dtype, torch.float32)
        n, width = len(self.points), neurons_per_layer(lm)
        replay = Replay(lm, [Row(point.ids, len(point.ids) - 1) for point in self.points], 0)
        tokens = torch.tensor([point.token for point in self.points], device=lm.device)
        self._activations, self.probabilities = self._unscaled(replay, tokens, width, dtype)
        every = torch.arange(n, device=lm.device).repeat_interleave(steps)
        self._replay, self._tokens = replay.select(every), tokens[every]
        self._scales = torch.linspace(0, 1, steps, dtype=dtype, device=lm.device).repeat(n)[:, None]
        self.scaled = nn.Parameter(torch.zeros(n * steps, width, dtype=dtype, device=lm.device))
        self.scores = torch.zeros(n, lm.arch.n_layers, width, dtype=dtype, device=lm.device)
        self.layer = 0

    @property
    def done(self) -> bool:
        """All layers have been looked at."""
        return self.layer >= self.lm.arch.n_layers

    def loss(self) -> Tensor:
        """Minus the sum of p(token) over all points and scales: its gradient is minus that of each p."""
        a = self._activations[self.layer].repeat_interleave(self.steps, 0)
        with torch.no_grad():
            self.scaled.copy_(a * self._scales)
        with replaced(neuron_map(self.lm, self.layer), self.scaled):
            return -self._p(self._replay, self._tokens).sum()

    def take(self) -> None:
        """Takes up the gradient of the layer at hand; on to the next one."""
        assert self.scaled.grad is not None
        summed = -self.scaled.grad.reshape(len(self.points), self.steps, -1).sum(1)
        self.scores[:, self.layer] = self._activations[self.layer] * summed / self.steps
        self.layer += 1

    def by_prompt(self) -> dict[tuple[int, int], tuple[Tensor, float]]:
        """Of everything that the points belong to: attributions `[n_layers, d_in]` and p, as far as they are here."""
        found: dict[tuple[int, int], tuple[Tensor, float]] = {}
        for point, scores, p in zip(self.points, self.scores, self.probabilities.tolist(), strict=True):
            scores, p = scores * point.share, p * point.share
            if point.of in found:
                scores, p = scores + found[point.of][0], p + found[point.of][1]
            found[point.of] = scores, p
        return found

    def _p(self, replay: Replay, tokens: Tensor) -> Tensor:
        """p(token) of every row, `[n_rows]`."""
        logits = self.lm.arch.logits(self.lm.model, replay.run({})[:, 0])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].exp()

    @torch.no_grad()
    def _unscaled(self, replay: Replay, tokens: Tensor, width: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
        """The activations of every layer as they are, `[n_points, d_in]` each, and p(token) with them."""
        seen: list[Tensor] = []

        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            seen.append(output.reshape(replay.n_rows, -1)[:, :width].to(dtype, copy=True))

        with ExitStack() as stack:
            for layer in range(self.lm.arch.n_layers):
                stack.callback(neuron_map(self.lm, layer).register_forward_hook(hook).remove)
            p = self._p(replay, tokens)
        return seen, p


@contextmanager
def replaced(module: nn.Module, activations: Tensor) -> Iterator[None]:
    """Inside, the first outputs of `module` are `activations`, `[n_rows, d_in]`, at rows of one token."""

    def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        rows = output.reshape(len(activations), -1)
        rest = rows[:, activations.shape[1] :]
        return torch.cat([activations.to(output.dtype), rest], 1).reshape(output.shape)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
