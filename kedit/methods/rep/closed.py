"""REP without training: the least move that delivers the whole edit, behind a logistic gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit.delta.pathway import Pathway
from kedit.methods.rep.calibrate import hysteresis_of, threshold_of
from kedit.methods.rep.config import AdapterConfig
from kedit.methods.rep.keys import AdapterTask

RIDGE = 1e-3  # of the logistic gate, on the weights of keys whose dimensions have unit mean square


def closed_form(tasks: Sequence[AdapterTask], config: AdapterConfig) -> list[Pathway]:
    """k_hat = k + (1 - r(k)) k* where the gate is open (specs/rep.md 11): r(k_hat) = 1 exactly.

    Among all moves with that property it is the smallest in the norm of C^-1 (for a direction C^-1 k*). The
    gate is a logistic regression on unit keys.

    Args:
        tasks: One per edit.
        config: `gate` (logistic or none) and how its threshold is found.
    """
    found = []
    for task in tasks:
        down = -task.direction / (task.k_star @ task.direction)
        pathway = Pathway(down[None], task.k_star[:, None].clone(), offset=task.k_star.clone())
        found.append(logistic_gate(pathway, task, config) if config.gate != "none" else pathway)
    return found


def logistic_gate(pathway: Pathway, task: AdapterTask, config: AdapterConfig) -> Pathway:
    """`pathway` behind a logistic regression on unit keys, calibrated.

    What is held back calibrates a first fit; a second fit then learns from it too and keeps the threshold.
    """
    first = replace(pathway, **_fit(task.positives, task.negatives, task.hard_negatives))
    calibrated = threshold_of(first, task, config)
    positives = torch.cat([task.positives, task.held_positives])
    negatives = torch.cat([task.negatives, task.held_negatives])
    return hysteresis_of(replace(calibrated, **_fit(positives, negatives, task.hard_negatives)), task, config)


def _fit(positives: Tensor, negatives: Tensor, hard_negatives: Tensor) -> dict[str, Tensor]:
    """Weights of the gate by L-BFGS: positives weigh as much as both kinds of negatives, which weigh alike."""
    groups = [(positives, 0.5), (negatives, 0.25), (hard_negatives, 0.25)]
    groups = [(keys, share) for keys, share in groups if len(keys)]
    keys = torch.cat([keys for keys, _ in groups])
    label = torch.zeros(len(keys)).to(keys)
    label[: len(positives)] = 1.0
    balance = torch.cat([torch.full((len(keys),), share / len(keys)) for keys, share in groups]).to(keys)
    unit = F.normalize(keys, dim=-1)
    spread = unit[len(positives) :].square().mean(0).clamp(min=1e-12).rsqrt()
    x = unit * spread
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
    return {"read": trained[:-1] * spread, "bias": trained[-1]}
