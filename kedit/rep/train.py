"""The training of REP's adapters on cached keys: many at once, no forward pass of the model in a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kedit.pathway import Pathway
from kedit.rep.calibrate import threshold_of
from kedit.rep.config import AdapterConfig
from kedit.rep.keys import Task


class AdapterLanes:
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

    def __init__(self, tasks: Sequence[Task], config: AdapterConfig) -> None:
        self.config = config
        self.tasks = list(tasks)
        anchors = torch.stack([task.anchor for task in tasks])
        n, d = anchors.shape
        self.scale = torch.ones_like(anchors[:, :1]) if config.absolute else math.sqrt(d) / anchors.norm(dim=1)[:, None]
        self.direction = torch.stack([task.direction for task in tasks])
        self.norm = self.scale[:, 0] * torch.stack([task.anchor @ task.direction for task in tasks])  # r's denominator
        self.bare = self.scale * torch.stack([task.bare for task in tasks])
        self.total = torch.full((n,), float("nan"))
        self.terms: dict[str, Tensor] = {}
        self.step = 0
        self._queues: list[list[int]] = [[] for _ in tasks]
        h = max(1, int(config.gate_width * d)) if config.gate == "mlp" else 0
        self.down = _uniform((n, config.rank, d), d, anchors.device)
        self.up = nn.Parameter(torch.zeros(n, d, config.rank, device=anchors.device))
        self.hidden = _uniform((n, h, d), d, anchors.device) if h else None
        self.hidden_bias = _uniform((n, h), d, anchors.device) if h else None
        self.read = _uniform((n, h or d), h or d, anchors.device) if config.gate != "none" else None
        self.bias = _uniform((n,), h or d, anchors.device) if config.gate != "none" else None

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser trains."""
        projection = [self.down, self.up] if self.config.projection else []
        every = [*projection, self.hidden, self.hidden_bias, self.read, self.bias]
        return [p for p in every if p is not None]

    def logits(self, keys: Tensor) -> Tensor | None:
        """The gates' logits for scaled keys `[n, P, D]`: `[n, P]`; None without a gate."""
        if self.read is None or self.bias is None:
            return None
        if self.hidden is None or self.hidden_bias is None:
            inner = F.normalize(keys, dim=-1)
        else:
            inner = F.gelu(torch.baddbmm(self.hidden_bias[:, None], keys, self.hidden.transpose(1, 2)))
        return torch.bmm(inner, self.read[:, :, None])[..., 0] + self.bias[:, None]

    def move(self, keys: Tensor) -> Tensor:
        """f of keys `[n, P, D]` in training (with dropout)."""
        if not self.config.projection:
            return keys
        inner = F.dropout(keys, self.config.dropout, training=self.config.dropout > 0)
        return torch.bmm(torch.bmm(inner, self.down.transpose(1, 2)), self.up.transpose(1, 2))

    def loss(self) -> Tensor:
        """Sum over the lanes of this step's loss."""
        c = self.config
        picked = [self._pick(i) for i in range(len(self.tasks))]
        positives = self.scale[:, None] * torch.stack(
            [task.positives[rows] for task, rows in zip(self.tasks, picked, strict=True)]
        )
        keys = torch.cat([self.bare[:, None], positives], 1)  # [n, 1 + P, D]
        logits = self.logits(keys)
        gate = torch.ones_like(keys[..., 0]) if logits is None else (self._sharpness() * logits).sigmoid()
        moved = keys + gate[..., None] * self.move(keys)
        terms = {
            "aggregation": c.aggregation * self._aggregation(moved[:, 1:]),
            "consistency": c.alpha * self._consistency(moved[:, 0]),
        }
        if c.strength:
            reached = torch.bmm(moved, self.direction[:, :, None])[..., 0] / self.norm[:, None]
            terms["strength"] = c.strength * (reached - 1).square().mean(1)
        if c.gate_loss and logits is not None and c.negatives:
            terms["gate"] = c.gate_loss * self._gate_loss(logits[:, 1:])
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
            gate: dict[str, Tensor] = {}
            if self.read is not None and self.bias is not None:
                gate = {"read": self.read[i].clone(), "bias": self.bias[i].clone()}
                gate["threshold"] = torch.zeros_like(self.bias[i])
            if self.hidden is not None and self.hidden_bias is not None:
                gate |= {"hidden": self.hidden[i] * self.scale[i], "hidden_bias": self.hidden_bias[i].clone()}
            if self.config.projection:
                pathway = Pathway(self.down[i].clone(), self.up[i].clone(), **gate)
            else:
                eye = torch.eye(task.anchor.shape[0], device=task.anchor.device)
                pathway = Pathway(eye, eye, **gate)
            found.append(threshold_of(pathway, task, self.config))
        return found

    def _pick(self, lane: int) -> Tensor:
        """The next slice of the lane's shuffled positives; shuffled again when they are used up."""
        n = len(self.tasks[lane].positives)
        rows: list[int] = []
        while len(rows) < self.config.positives:
            if not self._queues[lane]:
                self._queues[lane] = torch.randperm(n).tolist()
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

    def _gate_loss(self, positives: Tensor) -> Tensor:
        """Cross entropy of the gate, positives and negatives in balance: `[n]`."""
        rows = [torch.randint(len(task.negatives), (self.config.negatives,)) for task in self.tasks]
        keys = torch.stack(
            [task.negatives[r.to(task.negatives.device)] for task, r in zip(self.tasks, rows, strict=True)]
        )
        negatives = self.logits(self.scale[:, None] * keys)
        assert negatives is not None
        return F.softplus(-positives).mean(1) + F.softplus(negatives).mean(1)


def _uniform(shape: tuple[int, ...], fan_in: int, device: torch.device) -> nn.Parameter:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's default for a Linear, which is Kaiming's with a = sqrt(5)."""
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter((torch.rand(shape) * 2 - 1).mul_(bound).to(device))
