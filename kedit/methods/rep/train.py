"""The training of REP's adapters on cached keys: many at once, no forward pass of the model in a step.

A step hands the same number of operations to the device whatever the number of adapters, and waits for none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kedit.delta.pathway import Pathway
from kedit.methods.rep.calibrate import hysteresis_of, threshold_of
from kedit.methods.rep.closed import logistic_gates
from kedit.methods.rep.config import AdapterConfig
from kedit.methods.rep.draws import Draws, LaneSizes, StepDraws
from kedit.methods.rep.gate_fit import apart
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
        self._dot = torch.stack([task.k_star @ task.direction for task in tasks])
        self.norm = self.scale[:, 0] * self._dot  # r's denominator
        self.bare = self.scale * torch.stack([task.bare for task in tasks])
        self._square = self.bare.square().sum(1)
        self.total = torch.full((n,), float("nan"))
        self.terms: dict[str, Tensor] = {}
        self.step = 0
        randoms = [torch.Generator().manual_seed(task.seed) for task in tasks]  # lanes do not see each other
        self.k_stars = self.scale * k_stars
        self.along = nn.Parameter(torch.zeros(n, 2, device=k_stars.device)) if config.anchored else None
        h = max(1, int(config.gate_width * d))
        self.down = _uniform(randoms, (config.rank, d), d, k_stars.device)
        self.up = nn.Parameter(torch.zeros(n, d, config.rank, device=k_stars.device))
        self.gate = _Gate(randoms, d, h, k_stars.device) if config.gate == "mlp" else None
        negatives = max(1, config.negatives // 2) if self.gate is not None and self._gate_trains else 0
        self._positives = torch.cat([task.positives for task in tasks])  # of all lanes, one after another
        if negatives:
            self._hard_negatives = torch.cat([_hard_negatives(task) for task in tasks])
            self._negatives = torch.cat([task.negatives for task in tasks])
        sizes = [LaneSizes(len(t.positives), len(_hard_negatives(t)), len(t.negatives)) for t in tasks]
        dropout = config.dropout if config.projection else 0.0
        self._draws = Draws(randoms, sizes, k_stars.device, config.steps, config.positives, negatives, dropout, d)

    @property
    def _gate_trains(self) -> bool:
        return bool(self.config.gate_loss and self.config.negatives)

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser trains."""
        projection = [p for p in (self.down, self.up, self.along) if p is not None] if self.config.projection else []
        return [*projection, *(self.gate.parameters() if self.gate is not None else ())]

    def move(self, keys: Tensor, kept: Tensor | None = None) -> Tensor:
        """f of keys `[n, P, D]`; in training only of the numbers that dropout leaves, `kept: [n, P, D]` bool."""
        if not self.config.projection:
            return keys
        inner = keys if kept is None else keys * kept / (1.0 - self.config.dropout)
        moved = torch.bmm(torch.bmm(inner, self.down.transpose(1, 2)), self.up.transpose(1, 2))
        if self.along is not None:
            a, b = (PACE * self.along[:, None]).unbind(-1)
            moved = moved + (a + b * self._reached(inner))[..., None] * self.k_stars[:, None]
        return moved

    def loss(self) -> Tensor:
        """Sum over the lanes of this step's loss."""
        c, draws = self.config, self._draws.step(self.step)
        keys = torch.cat([self.bare[:, None], self.scale[:, None] * self.read_positives(draws.positives)], 1)
        moves, logits = self.move(keys, draws.kept), None
        if self.gate is not None:
            logits = self.gate(keys)
            moves = (self._sharpness() * logits).sigmoid()[..., None] * moves
        moved = keys + moves  # [n, 1 + P, D]
        terms = {
            "aggregation": c.aggregation * self._aggregation(moved[:, 1:]),
            "consistency": c.alpha * self._consistency(moved[:, 0]),
        }
        if c.strength:
            terms["strength"] = c.strength * (self._reached(moved) - 1).square().mean(1)
        if self.gate is not None and logits is not None and self._gate_trains:
            terms["gate"] = c.gate_loss * self._gate_loss(self.gate, logits[:, 1:], draws)
        parts = torch.stack(list(terms.values()))
        total = parts.sum(0)
        self.total = total.detach()
        self.terms = dict(zip(terms, parts.detach(), strict=True))
        self.step += 1
        return total.sum()

    def read_positives(self, rows: Tensor) -> Tensor:
        """Native keys of the positives of a step: rows `[n, P]` of all lanes' positives -> `[n, P, D]`."""
        return self._positives[rows]

    @torch.no_grad()
    def pathways(self) -> list[Pathway]:
        """The adapters as they are now, their gates calibrated, one per task."""
        c = self.config
        plain = self._projections() if c.projection else [Pathway(*_double(task)) for task in self.tasks]
        if self.gate is not None:
            gated = zip(plain, self.tasks, self.gate.tensors(self.scale), strict=True)
            return [hysteresis_of(threshold_of(replace(p, **g), task, c), task, c) for p, task, g in gated]
        return logistic_gates(plain, self.tasks, c) if c.gate == "logistic" else plain

    def _projections(self) -> list[Pathway]:
        """The adapters without their gates, for keys that are not scaled."""
        down, up, offset = self.down.detach(), self.up.detach(), None
        if self.along is not None:
            a, b = (PACE * self.along.detach())[:, None].unbind(-1)  # [n, 1] each
            k_stars = torch.stack([task.k_star for task in self.tasks])
            down = torch.cat([down, (self.direction / self._dot[:, None])[:, None]], 1)
            up, offset = torch.cat([up, (b * k_stars)[..., None]], 2), a * k_stars
        parts = [torch.unbind_copy(part) for part in (down, up, offset) if part is not None]
        return [Pathway(*own) for own in zip(*parts, strict=True)]

    def _reached(self, keys: Tensor) -> Tensor:
        """r of scaled keys `[n, P, D]`: `[n, P]`."""
        return torch.bmm(keys, self.direction[:, :, None])[..., 0] / self.norm[:, None]

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
        return square.sum(1) / self._square

    def _gate_loss(self, gate: _Gate, positives: Tensor, draws: StepDraws) -> Tensor:
        """Cross entropy of the gate, positives and negatives in balance, half of these the near ones: `[n]`."""
        found = F.softplus(-positives).mean(1)
        for table, rows in ((self._hard_negatives, draws.hard_negatives), (self._negatives, draws.negatives)):
            logits = gate(self.scale[:, None] * table[rows])
            found = found + F.softplus(logits).mean(1) / 2
        return found


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

    def tensors(self, scale: Tensor) -> list[dict[str, Tensor]]:
        """Every gate as a pathway holds it, for keys that are not scaled by `scale: [n, 1]`."""
        hidden = apart(self.hidden * scale[..., None])
        rest = [apart(part.detach()) for part in (self.hidden_bias, self.read, self.bias)]
        names = ("hidden", "hidden_bias", "read", "bias")
        return [dict(zip(names, own, strict=True)) for own in zip(hidden, *rest, strict=True)]


def _hard_negatives(task: AdapterTask) -> Tensor:
    """Near negatives; any where there are none, as for a subject of one token."""
    return task.hard_negatives if len(task.hard_negatives) else task.negatives


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
