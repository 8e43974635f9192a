"""REP without training: the least move that delivers the whole edit, behind a logistic gate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit.pathway import Pathway
from kedit.rep.calibrate import threshold_of
from kedit.rep.config import AdapterConfig
from kedit.rep.keys import Task

RIDGE = 1e-3  # of the logistic gate, on the weights of whitened keys


def closed_form(tasks: Sequence[Task], config: AdapterConfig) -> list[Pathway]:
    """k_hat = k + (1 - r(k)) k* where the gate is open (specs/rep.md 11): r(k_hat) = 1 exactly.

    Among all moves with that property it is the smallest in the norm of C^-1 (for a direction C^-1 k*). The
    gate is a logistic regression on unit keys, its weights penalised in the metric of the covariance.

    Args:
        tasks: One per edit.
        config: `gate` (none or linear; an mlp is not fitted here), `threshold`, `false_alarms`.
    """
    found = []
    for task in tasks:
        down = -task.direction / (task.anchor @ task.direction)
        gate = {} if config.gate == "none" else _logistic(task)
        pathway = Pathway(down[None], task.anchor[:, None].clone(), offset=task.anchor.clone(), **gate)
        found.append(threshold_of(pathway, task, config))
    return found


def _logistic(task: Task) -> dict[str, Tensor]:
    """Weights of the gate: balanced logistic regression by L-BFGS, in float64."""
    keys = torch.cat([task.positives, task.negatives])
    label = torch.cat([torch.ones(len(task.positives)), torch.zeros(len(task.negatives))]).to(keys)
    unit = F.normalize(keys, dim=-1)
    spread = unit[len(task.positives) :].square().mean(0).clamp(min=1e-12).rsqrt()  # a diagonal whitening
    x = unit * spread
    balance = torch.where(label > 0, 0.5 / len(task.positives), 0.5 / max(1, len(task.negatives)))
    weights = torch.zeros(x.shape[1] + 1, dtype=x.dtype, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        logit = x @ weights[:-1] + weights[-1]
        value = (F.binary_cross_entropy_with_logits(logit, label, reduction="none") * balance).sum()
        value = value + RIDGE * weights[:-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    trained = weights.detach()
    return {"read": trained[:-1] * spread, "bias": trained[-1], "threshold": torch.zeros_like(trained[-1])}
