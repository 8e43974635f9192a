"""The training of REP's adapters on cached keys: many at once, no forward pass of the model in a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kedit.delta.pathway import Pathway
from kedit.methods.rep.calibrate import hysteresis_of, threshold_of
from kedit.methods.rep.closed import logistic_gate
from kedit.methods.rep.config import AdapterConfig
from kedit.methods.rep.keys import AdapterTask

PACE = 60.0  # the two coefficients along k* move so much faster than single weights under Adam's equal steps


class AdapterTrainer:
    """Adapters of several edits at one layer, trained side by side (REP section 4.3; specs/rep.md 2 and 4).

    With `config.absolute` false every task's keys are scaled so that the edit key has unit mean square, which
    makes learning rate, alpha and gate alike in every model; the scale is folded into the gate at the end.

    Args:
        tasks: One per edit.
        config: Losses and optimiser.

    Attributes:
        total: Each lane's last loss, `[n]`.
        terms: Each lane's last loss terms, name -> `[n]`.
    """

    def __init__(self, tasks: Sequence[AdapterTask], config: AdapterConfig) -> None:
        self.config = config
        self.tasks = list(tasks)
        k_stars = torch.stack([task.k_star for task in tasks])
        n, d = k_stars.shape
        self.scale = torch.ones_like(k_stars[:, :1]) if config.absolute else math.sqrt(d) / k_stars.norm(dim=1)[:, None]
        self.direction = torch.stack([task.direction for task in tasks])
        self.norm = self.scale[:, 0] * torch.stack([task.k_star @ task.direction for task in tasks])  # r's denominator
        self.bare = self.scale * torch.stack([task.bare for task in tasks])
        self.total = torch.full((n,), float("nan"))
        self.terms: dict[str, Tensor] = {}
        self.step = 0
        self._random = [torch.Generator().manual_seed(task.seed) for task in tasks]  # lanes do not see each other
        self._queues: list[list[int]] = [[] for _ in tasks]
        self.k_stars = self.scale * k_stars
        self.along = nn.Parameter(torch.zeros(n, 2, device=k_stars.device)) if config.anchored else None
        h = max(1, int(config.gate_width * d))
        self.down = _uniform(self._random, (config.rank, d), d, k_stars.device)
        self.up = nn.Parameter(torch.zeros(n, d, config.rank, device=k_stars.device))
        self.gate = _Gate(self._random, d, h, k_stars.device) if config.gate == "mlp" else None

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser trains."""
        projection = [p for p in (self.down, self.up, self.along) if p is not None] if self.config.projection else []
        return [*projection, *(self.gate.parameters() if self.gate is not None else ())]

    def move(self, keys: Tensor) -> Tensor:
        """f of keys `[n, P, D]` in training (with dropout)."""
        if not self.config.projection:
            return keys
        inner = self._dropout(keys)
        moved = torch.bmm(torch.bmm(inner, self.down.transpose(1, 2)), self.up.transpose(1, 2))
        if self.along is not None:
            a, b = (PACE * self.along[:, None]).unbind(-1)
            moved = moved + (a + b * self._reached(inner))[..., None] * self.k_stars[:, None]
        return moved

    def loss(self) -> Tensor:
        """Sum over the lanes of this step's loss."""
        c = self.config
        picked = [self._pick(i) for i in range(len(self.tasks))]
        positives = self.scale[:, None] * torch.stack(
            [task.positives[rows] for task, rows in zip(self.tasks, picked, strict=True)]
        )
        keys = torch.cat([self.bare[:, None], positives], 1)  # [n, 1 + P, D]
        logits = None if self.gate is None else self.gate(keys)
        gate = torch.ones_like(keys[..., 0]) if logits is None else (self._sharpness() * logits).sigmoid()
        moved = keys + gate[..., None] * self.move(keys)
        terms = {
            "aggregation": c.aggregation * self._aggregation(moved[:, 1:]),
            "consistency": c.alpha * self._consistency(moved[:, 0]),
        }
        if c.strength:
            terms["strength"] = c.strength * (self._reached(moved) - 1).square().mean(1)
        if self.gate is not None and logits is not None and c.gate_loss and c.negatives:
            terms["gate"] = c.gate_loss * self._gate_loss(self.gate, logits[:, 1:])
        total = torch.stack(list(terms.values())).sum(0)
        self.total = total.detach()
        self.terms = {name: term.detach() for name, term in terms.items()}
        self.step += 1
        return total.sum()

    @torch.no_grad()
    def pathways(self) -> list[Pathway]:
        """The adapters as they are now, their gates calibrated, one per task."""
        found = []
        for i, task in enumerate(self.tasks):
            down, up = (self.down[i].clone(), self.up[i].clone()) if self.config.projection else _double(task)
            offset = None
            if self.along is not None and self.config.projection:
                a, b = (PACE * self.along[i]).unbind()
                reading = task.direction / (task.k_star @ task.direction)
                down, up = torch.cat([down, reading[None]]), torch.cat([up, b * task.k_star[:, None]], 1)
                offset = a * task.k_star
            pathway = Pathway(down, up, offset)
            if self.gate is not None:
                gated = replace(pathway, **self.gate.tensors(i, self.scale[i]))
                pathway = hysteresis_of(threshold_of(gated, task, self.config), task, self.config)
            elif self.config.gate == "logistic":
                pathway = logistic_gate(pathway, task, self.config)
            found.append(pathway)
        return found

    def _reached(self, keys: Tensor) -> Tensor:
        """r of scaled keys `[n, P, D]`: `[n, P]`."""
        return torch.bmm(keys, self.direction[:, :, None])[..., 0] / self.norm[:, None]

    def _pick(self, lane: int) -> Tensor:
        """The next slice of the lane's shuffled positives; shuffled again when they are used up."""
        n = len(self.tasks[lane].positives)
        rows: list[int] = []
        while len(rows) < self.config.positives:
            if not self._queues[lane]:
                self._queues[lane] = torch.randperm(n, generator=self._random[lane]).tolist()
            rows.append(self._queues[lane].pop())
        return torch.tensor(rows, device=self.bare.device)

    def _sharpness(self) -> float:
        """Factor of the logit, growing from 1 to `anneal` over the steps."""
        return 1.0 + (self.config.anneal - 1.0) * self.step / max(1, self.config.steps - 1)

    def _aggregation(self, moved: Tensor) -> Tensor:
        """-<k_hat / ||k_hat||, u>, the mean over the positives: `[n]`."""
        aimed = F.normalize(moved, dim=-1) if self.config.normalise else moved
        return -torch.bmm(aimed, self.direction[:, :, None])[..., 0].mean(1)

    def _consistency(self, moved: Tensor) -> Tensor:
        """How far the bare prompt's key moved: `[n]`."""
        square = (moved - self.bare).square()
        if self.config.absolute:
            return square.mean(1)
        return square.sum(1) / self.bare.square().sum(1)

    def _gate_loss(self, gate: _Gate, positives: Tensor) -> Tensor:
        """Cross entropy of the gate, positives and negatives in balance, half of these the near ones: `[n]`."""
        found = F.softplus(-positives).mean(1)
        far = [task.negatives for task in self.tasks]
        hard_negatives = [
            task.hard_negatives if len(task.hard_negatives) else task.negatives for task in self.tasks
        ]  # a one-token subject has none
        for group in (hard_negatives, far):
            logits = gate(self.scale[:, None] * self._sample(group, max(1, self.config.negatives // 2)))
            found = found + F.softplus(logits).mean(1) / 2
        return found

    def _sample(self, group: list[Tensor], count: int) -> Tensor:
        """`count` keys of every task, drawn with replacement: `[n, count, D]`."""
        drawn = [torch.randint(len(k), (count,), generator=r) for k, r in zip(group, self._random, strict=True)]
        return torch.stack([keys[rows.to(keys.device)] for keys, rows in zip(group, drawn, strict=True)])

    def _dropout(self, keys: Tensor) -> Tensor:
        """`keys` with each number left out with the probability `dropout`, the others scaled up for it."""
        kept = 1.0 - self.config.dropout
        if kept == 1.0:
            return keys
        draws = [torch.rand(keys.shape[1:], generator=r) for r in self._random]
        return keys * (torch.stack(draws).to(keys.device) < kept) / kept


class _Gate(nn.Module):
    """The paper's gates, one for each lane: D -> h -> 1 with a GELU between; gives logits."""

    def __init__(self, lanes: list[torch.Generator], d: int, h: int, device: torch.device) -> None:
        super().__init__()
        self.hidden, self.hidden_bias = _uniform(lanes, (h, d), d, device), _uniform(lanes, (h,), d, device)
        self.read, self.bias = _uniform(lanes, (h,), h, device), _uniform(lanes, (), h, device)

    def forward(self, keys: Tensor) -> Tensor:
        """Scaled keys `[n, P, D]` to logits `[n, P]`."""
        inner = F.gelu(torch.baddbmm(self.hidden_bias[:, None], keys, self.hidden.transpose(1, 2)))
        return torch.bmm(inner, self.read[:, :, None])[..., 0] + self.bias[:, None]

    def tensors(self, i: int, scale: Tensor) -> dict[str, Any]:
        """One gate as a pathway holds it, for keys that are not scaled."""
        kept = {"hidden_bias": self.hidden_bias, "read": self.read, "bias": self.bias}
        return {"hidden": self.hidden[i] * scale} | {name: tensor[i].clone() for name, tensor in kept.items()}


def _double(task: AdapterTask) -> tuple[Tensor, Tensor]:
    """A projection that gives the key itself."""
    eye = torch.eye(len(task.k_star), device=task.k_star.device)
    return eye, eye.clone()


def _uniform(lanes: list[torch.Generator], shape: tuple[int, ...], fan_in: int, device: torch.device) -> nn.Parameter:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), drawn for every lane by itself: `[n, *shape]`.

    This is torch's default for a Linear, which is Kaiming's with a = sqrt(5).
    """
    bound = 1 / math.sqrt(fan_in)
    drawn = torch.stack([torch.rand(shape, generator=random) for random in lanes])
    return nn.Parameter((drawn * 2 - 1).mul_(bound).to(device))
