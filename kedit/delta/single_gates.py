"""Adapters of one edit per lane, all rows of a batch at once: what lanes are where each is an edit by itself.

For devices that work through a queue: nothing is looked at, and the number of operations does not depend on the lanes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kedit.delta.gate_state import GateHistory
from kedit.delta.pathway import Pathway, lent

FAR = 1e30  # the margin of a gate that is never open, or always; finite, so that padding times it is 0


class SingleGates:
    """One pathway per lane, side by side; ranks are padded with zeros. A lane without one is shut.

    Args:
        pathways: Lane -> its pathway, with a linear gate or none.
        n_lanes: Number of lanes; the last one has none.
    """

    def __init__(self, pathways: Mapping[int, Pathway], n_lanes: int) -> None:
        first = next(iter(pathways.values())).down
        d, rank = first.shape[1], max(p.down.shape[0] for p in pathways.values())
        self.read, self.offset = first.new_zeros(n_lanes, d), first.new_zeros(n_lanes, d)
        self.down, self.up = (first.new_zeros(n_lanes, rank, d) for _ in range(2))
        self.shift = first.new_full((n_lanes,), -FAR)
        self.again = first.new_zeros(n_lanes)
        for lane, p in pathways.items():
            self.down[lane, : p.down.shape[0]], self.up[lane, : p.down.shape[0]] = p.down, p.up.T
            if p.offset is not None:
                self.offset[lane] = p.offset
            if p.hysteresis is not None:
                self.again[lane] = p.hysteresis
            if p.read is None or p.bias is None or p.threshold is None:
                self.shift[lane] = FAR
            else:
                self.read[lane], self.shift[lane] = p.read, p.bias - p.threshold

    @staticmethod
    def fit(pathways: Mapping[int, Sequence[Pathway]]) -> bool:
        """Whether every lane has one adapter, whose gate has no hidden layer."""
        return all(len(own) == 1 and own[0].hidden is None for own in pathways.values())

    def rows(self, lanes: Tensor, history: GateHistory, remembers: bool) -> _MoveAllRows:
        """The hook for rows of these lanes, `[batch]` int64; `remembers`: some gate has a hysteresis."""
        return _MoveAllRows(self, lanes.to(self.down.device), history, remembers)


class _MoveAllRows:
    """Forward pre-hook: keys `[batch, T, D]`, each row by the pathway of its lane."""

    def __init__(self, gates: SingleGates, lanes: Tensor, history: GateHistory, remembers: bool) -> None:
        self.history, self.remembers = history, remembers
        self.read, self.offset = gates.read[lanes, :, None], gates.offset[lanes, None]  # [batch, D, 1], [batch, 1, D]
        self.down, self.up = gates.down[lanes].transpose(1, 2), gates.up[lanes]
        self.shift, self.again = gates.shift[lanes, None, None], gates.again[lanes, None, None]

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        keys = args[0].reshape(len(self.read), -1, args[0].shape[-1])
        native = keys.float()
        margins = torch.bmm(F.normalize(native, dim=-1), self.read) + self.shift  # [batch, T, 1]
        if self.remembers:
            texts = self.history.texts(module, keys.shape[:2])
            margins = margins + lent(margins, self.again, texts)
            assert texts.widest is not None
            self.history.note(module, texts.widest)
        moved = native + torch.baddbmm(self.offset, torch.bmm(native, self.down), self.up)
        return (torch.where(margins > 0, moved.to(keys.dtype), keys).reshape(args[0].shape), *args[1:])
