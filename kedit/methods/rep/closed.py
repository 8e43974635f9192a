"""REP without training: the least move that delivers the whole edit, behind a logistic gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from kedit.delta.pathway import Pathway
from kedit.methods.rep.calibrate import hysteresis_of, threshold_of
from kedit.methods.rep.config import AdapterConfig
from kedit.methods.rep.gate_fit import GateKeys, fit_gates
from kedit.methods.rep.keys import AdapterTask


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
        found.append(Pathway(down[None], task.k_star[:, None].clone(), offset=task.k_star.clone()))
    return logistic_gates(found, tasks, config) if config.gate != "none" else found


def logistic_gates(pathways: Sequence[Pathway], tasks: Sequence[AdapterTask], config: AdapterConfig) -> list[Pathway]:
    """Each of `pathways` behind a logistic regression on unit keys, calibrated.

    What is held back calibrates a first fit; a second fit then learns from it too and keeps the threshold.
    """
    fits = fit_gates([GateKeys(t.positives, t.negatives, t.hard_negatives) for t in tasks])
    calibrated = [
        threshold_of(replace(pathway, **fit), task, config)
        for pathway, fit, task in zip(pathways, fits, tasks, strict=True)
    ]
    fits = fit_gates([
        GateKeys(
            torch.cat([t.positives, t.held_positives]), torch.cat([t.negatives, t.held_negatives]), t.hard_negatives
        )
        for t in tasks
    ])  # fmt: skip
    return [
        hysteresis_of(replace(pathway, **fit), task, config)
        for pathway, fit, task in zip(calibrated, fits, tasks, strict=True)
    ]
