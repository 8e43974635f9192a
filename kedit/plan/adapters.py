"""Memory of training REP's adapters: their own trainer on the `meta` device, on keys without numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from kedit.methods.rep import AdapterConfig, AdapterTask, AdapterTrainer
from kedit.methods.rep.adapter_phase import AdapterPhase
from kedit.runtime.live_peak import LivePeak

POSITIVES, HARD, HELD, LATER = 48, 256, 16, 128  # keys of a usual edit, beside those of ordinary text


def adapter_bytes(config: AdapterConfig, width: int, lanes: int) -> tuple[int, int]:
    """The most bytes at once, and those of one more adapter.

    Args:
        config: What is trained, and on how many keys.
        width: Numbers of a key.
        lanes: Adapters side by side.
    """
    one, two = _peak(config, width, 1), _peak(config, width, 2)
    return one + (lanes - 1) * (two - one), two - one


def _peak(config: AdapterConfig, width: int, lanes: int) -> int:
    with LivePeak(()) as live:
        phase = AdapterPhase(AdapterTrainer([usual_task(config, width, i) for i in range(lanes)], config))
        adam = phase.optimizer() if phase.lanes.parameters() else None
        for _ in range(2):  # the moments are there from the second step on
            if adam is not None:
                adam.zero_grad()
                phase.loss().backward()
                adam.step()
    return live.peak


def usual_task(config: AdapterConfig, width: int, seed: int, device: str = "meta") -> AdapterTask:
    """An edit's keys, as many as usual."""

    def keys(count: int) -> Tensor:
        return torch.randn(count, width, device=device)

    k_star = keys(1)[0]
    text = config.corpus_tokens
    held = int(config.held_back * text)
    return AdapterTask(
        k_star,
        k_star / k_star.norm(),
        k_star,
        positives=keys(POSITIVES),
        negatives=keys(text - held),
        hard_negatives=keys(HARD),
        held_positives=keys(HELD),
        held_negatives=keys(held),
        later=keys(LATER),
        seed=seed,
    )
