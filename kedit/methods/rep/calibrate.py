"""When a gate opens: its threshold, from keys that did not train it, and how far below it a second time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.delta.pathway import Pathway, PathwayRouter
from kedit.methods.rep.config import AdapterConfig

if TYPE_CHECKING:
    from kedit.methods.rep.keys import AdapterTask


MARGIN = 1.0  # nats by which tokens after the name stay below what a calibrated hysteresis reaches


def threshold_of(pathway: Pathway, task: AdapterTask, config: AdapterConfig) -> Pathway:
    """`pathway` with its threshold set.

    A given tau is taken as it is. Otherwise tau is the opening that half of the held-back positives reach, raised
    until at most `false_alarms` of the held-back negatives pass, and kept within `threshold_range`.
    """
    if pathway.read is None or pathway.bias is None:
        return pathway
    zero = torch.zeros_like(pathway.bias)
    if config.threshold is not None:
        return replace(pathway, threshold=zero + _logit(config.threshold))
    low, high = (_logit(tau) for tau in config.threshold_range)
    plain = replace(pathway, threshold=zero)
    threshold = zero + low
    if len(task.held_positives):
        threshold = plain.margin(task.held_positives).median()
    if len(task.held_negatives):
        threshold = threshold.maximum(
            plain.margin(task.held_negatives).quantile(1 - config.false_alarms, interpolation="higher")
        )
    return replace(pathway, threshold=threshold.clamp(low, high))


def hysteresis_of(pathway: Pathway, task: AdapterTask, config: AdapterConfig) -> Pathway:
    """`pathway`, whose gate is otherwise done, with its hysteresis set.

    A given one is taken as it is. Otherwise it is the largest that keeps the gate shut at all tokens after the name in
    the edit's own prompts, by MARGIN; none where no such token was read.
    """
    if pathway.read is None or config.hysteresis == 0:
        return pathway
    if config.hysteresis is not None:
        return replace(pathway, hysteresis=torch.full_like(pathway.read[0], config.hysteresis))
    if not len(task.later):
        return pathway
    return replace(pathway, hysteresis=(-MARGIN - pathway.margin(task.later).max()).clamp(min=0.0))


def _logit(tau: float) -> float:
    tau = min(max(tau, 1e-6), 1 - 1e-6)
    return math.log(tau / (1 - tau))


def summary_row(pathway: Pathway, task: AdapterTask) -> dict[str, float | None]:
    """What the adapter does to the keys that did not train it, and to those that did, JSON-able.

    `open`, `held_open`: share of the positives (training, held back) whose gate is open; `false`: of the
    held-back negatives; `reach`: mean r(k_hat) over all positives, the share of the edit that reaches them.
    """
    (row,) = summary_rows([pathway], [task])
    return row


def summary_rows(pathways: Sequence[Pathway], tasks: Sequence[AdapterTask]) -> list[dict[str, float | None]]:
    """That of every adapter, on its task."""
    found = [_figures(pathway, task) for pathway, task in zip(pathways, tasks, strict=True)]
    known = [figure for row in found for figure in row.values() if figure is not None]
    numbers = iter(torch.stack(known).tolist() if known else ())  # read at once
    return [{name: None if one is None else round(next(numbers), 4) for name, one in row.items()} for row in found]


def _figures(pathway: Pathway, task: AdapterTask) -> dict[str, Tensor | None]:
    keys = torch.cat([task.positives, task.held_positives])
    hat = PathwayRouter([pathway])(keys)
    shares = {"open": task.positives, "held_open": task.held_positives, "false": task.held_negatives}
    row = {name: _mean((pathway.margin(k) > 0).float()) for name, k in shares.items()}
    row["reach"] = _mean(hat @ task.direction / (task.k_star @ task.direction))
    row["reach_before"] = _mean(keys @ task.direction / (task.k_star @ task.direction))
    return row | {"threshold": pathway.threshold}


def _mean(values: Tensor) -> Tensor | None:
    return values.mean() if len(values) else None
