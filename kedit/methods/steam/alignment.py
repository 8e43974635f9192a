"""STEAM's term of v*'s loss: the edited state where the object is predicted is drawn to the object's anchor.

Latent-level alignment (STEAM, EMNLP Findings 2025; specs/steam.md 4): L_LA = mean over layers and rewriting rows of
1 - cos(h, phi), both less a centre where one is given.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit.keyvalue.terms import NLL, State

MOST = 100.0  # of a lambda that the gradients choose


class Alignment:
    """lambda * L_LA of some lanes.

    Args:
        anchors: phi of every lane at the aligned layers, `[n_lanes, n_layers, d_model]` float32; lanes without one NaN.
        layers: The aligned layers, ascending; all above the edited one.
        centre: What is subtracted from states and anchors, `[n_layers, d_model]`; None: nothing.
        weighting: `fixed`: lambda = `strength`. `grad_ratio`: lambda = `strength` * |grad NLL| / |grad L_LA| at the
            first evaluation, at most 100, lane by lane.
        strength: See `weighting`.
        warmup: Evaluations over which lambda grows linearly from 0; 0: it is constant.
        on: Rewriting rows that are aligned: `all`, or the `bare` prompt.
        patience: See `settled`.
        tolerance: See `settled`.

    Attributes:
        weight: lambda of every lane, `[n_lanes]`; 0 where a lane has no anchor. None before the first evaluation.
        first: Mean cosine of each lane and layer at the first evaluation, `[n_lanes, n_layers]`.
        last: The same at the lane's last evaluation.
    """

    name = "la"
    counts = False

    def __init__(
        self,
        anchors: Tensor,
        layers: list[int],
        centre: Tensor | None = None,
        weighting: Literal["fixed", "grad_ratio"] = "fixed",
        strength: float = 10.0,
        warmup: int = 0,
        on: Literal["all", "bare"] = "all",
        patience: int = 5,
        tolerance: float = 1e-3,
    ) -> None:
        self.layers = tuple(layers)
        self.has = ~anchors.isnan().flatten(1).any(1)
        self.anchors = torch.where(self.has[:, None, None], anchors, torch.ones_like(anchors))
        self.centre = centre
        if centre is not None:
            self.anchors = self.anchors - centre
        self.weighting, self.strength, self.warmup, self.on = weighting, strength, warmup, on
        self.patience, self.tolerance = patience, tolerance
        self.weight: Tensor | None = None
        shape = self.anchors.shape[:2]
        self.first = torch.full(shape, float("nan"), device=anchors.device)
        self.last = self.first.clone()
        self._evaluations = 0
        self._best = torch.full(shape[:1], float("inf"), device=anchors.device)
        self._age = torch.zeros(shape[:1], dtype=torch.long, device=anchors.device)

    def __call__(self, state: State) -> Tensor:
        """`[m]`."""
        cosines = self._cosines(state)  # [m, n_layers]
        loss = (1 - cosines).mean(1)
        with torch.no_grad():
            self.last[state.lanes] = cosines
            if self._evaluations == 0:
                self.first[state.lanes] = cosines
        if self.weight is None:
            self.weight = self._weights(state, loss)
        self._note(state.lanes, loss.detach())
        ramp = min(1.0, self._evaluations / self.warmup) if self.warmup else 1.0
        self._evaluations += 1
        return ramp * self.weight[state.lanes] * loss

    def settled(self, lanes: Tensor) -> Tensor:
        """Lanes that need no further step for the alignment's sake, `[m]` bool.

        Those without an anchor, and those whose loss has not improved by more than `tolerance` for `patience`
        evaluations.
        """
        return (self._age[lanes] >= self.patience) | ~self.has[lanes]

    def _cosines(self, state: State) -> Tensor:
        """Mean cosine over a lane's rewriting rows, `[m, n_layers]`."""
        hidden = torch.stack([state.hidden[layer] for layer in self.layers], 1)  # [rows, n_layers, d]
        lane = state.row_lane
        if self.on == "bare":
            hidden, lane = hidden[state.bare], lane[state.bare]
        if self.centre is not None:
            hidden = hidden - self.centre
        each = F.cosine_similarity(hidden, self.anchors[state.lanes][lane], dim=-1, eps=1e-8)
        sums = each.new_zeros(len(state.lanes), len(self.layers)).index_add(0, lane, each)
        return sums / torch.bincount(lane, minlength=len(state.lanes))[:, None]

    def _weights(self, state: State, loss: Tensor) -> Tensor:
        """lambda of every lane; the first evaluation has them all."""
        if self.weighting == "fixed":
            return self.strength * self.has.float()
        if not loss.requires_grad:  # no step is left to make (trainer.fast_dev_run, the lanes after the first)
            return torch.zeros_like(loss)
        (nll,) = torch.autograd.grad(NLL()(state).sum(), state.delta, retain_graph=True)
        (own,) = torch.autograd.grad(loss.sum(), state.delta, retain_graph=True)
        ratio = nll.float().norm(dim=-1) / own.float().norm(dim=-1)
        return (self.strength * ratio).nan_to_num(0.0, posinf=MOST).clamp(max=MOST) * self.has

    def _note(self, lanes: Tensor, loss: Tensor) -> None:
        better = loss < self._best[lanes] - self.tolerance
        self._age[lanes] = torch.where(better, 0, self._age[lanes] + 1)
        self._best[lanes] = torch.where(better, loss, self._best[lanes])
