"""The state of an optimisation of value vectors: which lanes are still running, clamps, stops, failures.

Any loop can drive it: Lightning's (`kedit.methods`), or `optimise` below. Per step: `loss()`, backward,
the optimiser's step on `delta`, `after_step()`. Lanes do not see each other: a lane that has converged is
frozen and leaves the batch, and the others go on as if it had never been there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kedit.keyvalue.objective import ValueObjective
from kedit.keyvalue.terms import norms


class ValueOptimization:
    """Optimisation state of `objective.n_lanes` independent value vectors.

    Args:
        objective: Gives the losses.
        stop_loss: A lane whose loss falls below this is finished (baselines 1.0, step 5). Terms that do not count
            towards it must have settled too.
        clamp_norm_factor: ||delta|| is kept at or below this times ||v_init||, at every site by itself.

    Attributes:
        delta: The vectors, `[n_lanes, d]`, those of all sites end to end, zeros at the start; give it to the optimiser.
        total: Each lane's last total loss, `[n_lanes]`.
        terms: Each lane's last terms, name -> `[n_lanes]`.
        steps: Updates each lane has had, `[n_lanes]`.
        failed: Lanes whose loss was not finite, `[n_lanes]` bool; their delta is that before the failure.
    """

    def __init__(self, objective: ValueObjective, stop_loss: float = 5e-2, clamp_norm_factor: float = 4.0) -> None:
        n, device = objective.n_lanes, objective.v_init.device
        self.objective = objective
        self.stop_loss = stop_loss
        self.limit = clamp_norm_factor * norms(objective.v_init, len(objective.sites))  # [n_lanes, n_sites]
        self.delta = nn.Parameter(torch.zeros_like(objective.v_init))
        self.total = torch.full((n,), float("nan"), device=device)
        self.terms: dict[str, Tensor] = {}
        self.steps = torch.zeros(n, dtype=torch.long, device=device)
        self.failed = torch.zeros(n, dtype=torch.bool, device=device)
        self.running = torch.ones(n, dtype=torch.bool, device=device)
        self._part = objective  # the objective of the lanes that run
        self._lanes = torch.arange(n, device=device)  # their numbers
        self._goes_on = list(
            range(n)
        )  # which of these the last loss left running; all that the host knows of `running`
        self._kept = self.delta.detach().clone()

    @property
    def done(self) -> bool:
        """No lane is left to optimise, as far as the last loss has shown."""
        return not self._goes_on

    def loss(self) -> Tensor:
        """Sum of the running lanes' losses at the present `delta`; lanes that have finished are frozen.

        Returns:
            A scalar to call backward on. When every lane has finished it is a zero with zero gradient.
        """
        whole = len(self._lanes) == len(self.delta)
        terms = self._part(self.delta if whole else self.delta[self._lanes])
        total = torch.stack(list(terms.values())).sum(0)
        with torch.no_grad():
            self.total[self._lanes] = total
            for name, value in terms.items():
                self.terms.setdefault(name, torch.full_like(self.total, float("nan")))[self._lanes] = value
            finite = torch.isfinite(total)
            self.failed[self._lanes] |= ~finite
            goes_on = finite & ~self.finished(terms, total) & self.running[self._lanes]
            self.running[self._lanes] = goes_on
            self._kept.copy_(self.delta)
            self._goes_on = [i for i, on in enumerate(goes_on.tolist()) if on]  # the one time that a step waits
        if not self._goes_on:
            return self.delta.sum() * 0.0
        return (total if len(self._goes_on) == len(total) else total[self._goes_on]).sum()

    def finished(self, terms: Mapping[str, Tensor], total: Tensor) -> Tensor:
        """Lanes whose counted loss is below `stop_loss`, where all other terms have settled: `[m]` bool."""
        others = [term for term in self.objective.terms if not term.counts]
        if not others:
            return total < self.stop_loss
        counted = torch.stack([terms[term.name] for term in self.objective.terms if term.counts]).sum(0)
        settled = torch.stack([term.settled(self._lanes) for term in others]).all(0)
        return (counted < self.stop_loss) & settled

    @torch.no_grad()
    def after_step(self) -> None:
        """Clamp the lanes that were updated, put frozen ones back, and drop them from the batch.

        A lane whose vector has overflowed has failed and keeps what it had before the step; it leaves with the next.
        """
        moved = torch.where(self.running[:, None], self.delta, self._kept)
        norm = norms(moved, self.limit.shape[1])
        overflow = self.running & ~norm.isfinite().all(1)
        self.failed |= overflow
        self.running &= ~overflow
        each = moved.unflatten(1, (self.limit.shape[1], -1))
        scale = (self.limit / norm)[..., None]
        clamped = torch.where((norm > self.limit)[..., None], each * scale, each).flatten(1)
        self.delta.copy_(torch.where(self.running[:, None], clamped, self._kept))
        self.steps += self.running
        if 0 < len(self._goes_on) < len(self._lanes):
            self._lanes = self._lanes[self._goes_on]
            self._goes_on = list(range(len(self._lanes)))
            self._part = self.objective.select(self._lanes)

    @torch.no_grad()
    def close(self) -> None:
        """Evaluate the lanes that ran out of steps once more, so that `total` is that of the final `delta`."""
        if not self.done:
            self.loss()
            self.running.zero_()
            self._goes_on = []

    def figures(self) -> dict[str, float]:
        """For the loggers: mean loss and terms over the lanes, and how many still run."""
        means = {"loss": self.total.nanmean(), "lanes": self.running.sum().to(self.total)}
        means |= {name: value.nanmean() for name, value in self.terms.items()}
        return dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))

    @property
    def v_star(self) -> Tensor:
        """Optimised values v_init + delta, `[n_lanes, d]`, float32; `objective.split` gives those of each site."""
        return (self.objective.v_init + self.delta).detach()


def optimise(lanes: ValueOptimization, lr: float = 0.5, steps: int = 25) -> Tensor:
    """Optimise v* with Adam, without Lightning: what the training steps of a method do.

    Args:
        lanes: The state.
        lr: Adam's learning rate.
        steps: Evaluations of the loss; the last one makes no update, so at most `steps - 1` updates.

    Returns:
        v*, `[n_lanes, d]`.
    """
    adam = torch.optim.Adam([lanes.delta], lr=lr)
    for _ in range(steps - 1):
        adam.zero_grad()
        loss = lanes.loss()
        if lanes.done:
            break
        loss.backward()
        adam.step()
        lanes.after_step()
    lanes.close()
    return lanes.v_star
