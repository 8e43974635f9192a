"""GRACE's values: for each request a free vector in the place of one output, trained to say the target.

Only the edited layer and those above it run, on the prompt's last token and the target's (`kedit.forward.replay`).
Requests are trained side by side; one that has converged is frozen and leaves the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kedit.forward.replay import Replay, Row
from kedit.model.lm import LM
from kedit.model.tokenization import Tokens


@dataclass(frozen=True)
class _Labels:
    """Where a target's token is predicted, `[m]` each: lane, suffix position, token, share in the lane's loss."""

    lane: Tensor
    position: Tensor
    token: Tensor
    weight: Tensor

    def select(self, lanes: Tensor, n: int) -> _Labels:
        """Those of some lanes of `n`, renumbered."""
        number = torch.full((n,), -1, device=lanes.device)
        number[lanes] = torch.arange(len(lanes), device=lanes.device)
        keep = number[self.lane] >= 0
        kept = replace(self, **{name: getattr(self, name)[keep] for name in ("position", "token", "weight")})
        return replace(kept, lane=number[self.lane[keep]])


class GraceObjective:
    """Losses of values that stand in the place of a module's output at the prompts' last tokens.

    Args:
        lm: The model, with the codebook that it has.
        texts: Prompts with their targets, one lane each.
        module: The edited module.
        layer: The layer that it is in.

    Attributes:
        queries: What the module reads there, `[n, d_in]`, float32.
        outputs: What it puts out, `[n, d_out]`, float32.
    """

    def __init__(self, lm: LM, texts: Sequence[Tokens], module: nn.Module, layer: int) -> None:
        self.lm, self.module, self.n_lanes = lm, module, len(texts)
        self.replay = Replay(lm, [Row(text.ids[:-1], text.n_prompt - 1) for text in texts], layer)
        found = [
            (lane, i, token, 1 / len(text.target))
            for lane, text in enumerate(texts)
            for i, token in enumerate(text.target)
        ]
        lane, position, token, share = zip(*found, strict=True)

        def integers(x: Sequence[int]) -> Tensor:
            return torch.tensor(x, dtype=torch.long, device=lm.device)

        weights = torch.tensor(share, dtype=torch.float32, device=lm.device)
        self.labels = _Labels(integers(lane), integers(position), integers(token), weights)
        with torch.no_grad(), self._hooked(None) as seen:
            self.replay.run({})
        self.queries, self.outputs = seen[0]

    def __call__(self, values: Tensor) -> Tensor:
        """Mean -log p of every lane's target, `[n]`, for `values: [n, d_out]` float32."""
        with self._hooked(values):
            final = self.replay.run({})
        own = self.labels
        logits = self.lm.arch.logits(self.lm.model, final[own.lane, own.position]).float()
        each = F.cross_entropy(logits, own.token, reduction="none")
        return values.new_zeros(self.n_lanes).index_add(0, own.lane, each * own.weight)

    def select(self, lanes: Tensor) -> GraceObjective:
        """The same for some of its lanes, `[m]` int64 in ascending order."""
        part = object.__new__(GraceObjective)
        part.lm, part.module, part.n_lanes = self.lm, self.module, len(lanes)
        part.replay, part.labels = self.replay.select(lanes), self.labels.select(lanes, self.n_lanes)
        part.queries, part.outputs = self.queries[lanes], self.outputs[lanes]
        return part

    @contextmanager
    def _hooked(self, values: Tensor | None) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Inside, the module's output at each row's first token is the row's value; None: it is only read."""
        seen: list[tuple[Tensor, Tensor]] = []
        n = self.n_lanes

        def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            rows = output.reshape(n, -1, output.shape[-1])
            if values is None:
                x = args[0].reshape(n, -1, args[0].shape[-1])
                seen.append((x[:, 0].float().clone(), rows[:, 0].float().clone()))
                return None
            return torch.cat([values[:, None].to(rows.dtype), rows[:, 1:]], 1).reshape(output.shape)

        handle = self.module.register_forward_hook(hook)  # behind that of a codebook, whose value it replaces
        try:
            yield seen
        finally:
            handle.remove()


class ValuesPhase:
    """Adam on the values, `steps` times.

    Args:
        objective: Gives the losses.
        values: Where they begin, `[n, d_out]`, float32.
        lr: Adam's learning rate.
        steps: Most updates.
        stop_loss: A lane whose loss is below is done; 0: never.

    Attributes:
        values: The values, a parameter.
        losses: Each lane's last loss, `[n]`.
        updates: Updates that each lane has had, `[n]`.
        failed: Lanes whose loss or value was not finite, `[n]` bool.
    """

    def __init__(self, objective: GraceObjective, values: Tensor, lr: float, steps: int, stop_loss: float) -> None:
        n, device = objective.n_lanes, values.device
        self.objective, self.lr, self.steps, self.stop_loss = objective, lr, steps, stop_loss
        self.values = nn.Parameter(values.clone())
        self.losses = torch.full((n,), float("nan"), device=device)
        self.updates = torch.zeros(n, dtype=torch.long, device=device)
        self.failed = torch.zeros(n, dtype=torch.bool, device=device)
        self.running = torch.ones(n, dtype=torch.bool, device=device)
        self._part, self._lanes = objective, torch.arange(n, device=device)
        self._kept = self.values.detach().clone()

    @property
    def done(self) -> bool:
        """No lane is left to train."""
        return not bool(self.running.any())

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam([self.values], lr=self.lr)

    def loss(self) -> Tensor:
        """Sum over the lanes that still run; zero where none does."""
        losses = self._part(self.values[self._lanes])
        with torch.no_grad():
            self.losses[self._lanes] = losses
            finite = losses.isfinite()
            self.failed[self._lanes] |= ~finite
            goes_on = finite & ~(losses < self.stop_loss)
            self.running[self._lanes] = goes_on
            self._kept.copy_(self.values)
        return losses[goes_on].sum() if bool(goes_on.any()) else self.values.sum() * 0.0

    def before_step(self) -> None:
        """No gradient is masked: what must stay is put back after the step."""

    @torch.no_grad()
    def after_step(self) -> None:
        """Puts frozen lanes back, and lets them leave the batch."""
        overflow = self.running & ~self.values.isfinite().all(1)
        self.failed |= overflow
        self.running &= ~overflow
        self.values.copy_(torch.where(self.running[:, None], self.values, self._kept))
        self.updates += self.running
        lanes = self.running.nonzero()[:, 0]
        if 0 < len(lanes) < len(self._lanes):
            self._part, self._lanes = self.objective.select(lanes), lanes

    @torch.no_grad()
    def close(self) -> None:
        """Losses of the values as they are at last, where lanes ran out of steps."""
        if not self.done:
            self.loss()
            self.running.zero_()

    def logs(self) -> dict[str, float]:
        """Mean loss over the lanes, and how many still run."""
        return {"loss": float(self.losses.nanmean()), "lanes": float(self.running.sum())}
