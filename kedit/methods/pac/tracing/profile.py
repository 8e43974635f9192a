"""What tracing found, layer by layer: how much the highest nodes of every matrix score (PAC, figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kedit.methods.pac.tracing.select import Scores

RANKS = 100
"""Nodes of every matrix that are kept, from the highest down."""


class Profile:
    """The mean over traces of every matrix's highest scores, by rank.

    Attributes:
        traces: How many traces there were.
        sums: (layer, kind) -> sum over the traces of the scores by rank, `[RANKS]` or fewer, float64.
        means: (layer, kind) -> sum over the traces of the mean score of all nodes.
    """

    def __init__(self) -> None:
        self.traces = 0
        self.sums: dict[tuple[int, str], Tensor] = {}
        self.means: dict[tuple[int, str], float] = {}

    def add(self, scores: Scores) -> None:
        """Takes one trace."""
        self.traces += 1
        for site, value in scores.items():
            key = (site.layer, site.kind)
            head = value.double().topk(min(RANKS, len(value))).values.cpu()
            self.sums[key] = self.sums.get(key, torch.zeros_like(head)) + head
            self.means[key] = self.means.get(key, 0.0) + float(value.double().mean())

    def rows(self) -> list[dict[str, Any]]:
        """A row for each layer, kind and rank (from 1; rank 0 is the mean over all nodes): `score`, a mean."""
        rows = []
        for (layer, kind), total in self.sums.items():
            values = [self.means[layer, kind], *total.tolist()]
            rows += [
                {"layer": layer, "kind": kind, "rank": rank, "score": value / self.traces}
                for rank, value in enumerate(values)
            ]
        return rows

    @classmethod
    def of(cls, profiles: Sequence[Profile]) -> Profile:
        """The mean over all their traces."""
        whole = cls()
        for profile in profiles:
            whole.traces += profile.traces
            for key, total in profile.sums.items():
                whole.sums[key] = whole.sums.get(key, torch.zeros_like(total)) + total
                whole.means[key] = whole.means.get(key, 0.0) + profile.means[key]
        return whole

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        sums = [(layer, kind, value, self.means[layer, kind]) for (layer, kind), value in self.sums.items()]
        return {"traces": self.traces, "sums": sums}

    def load(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.traces = int(state["traces"])
        self.sums = {(layer, kind): value for layer, kind, value, _ in state["sums"]}
        self.means = {(layer, kind): mean for layer, kind, _, mean in state["sums"]}
