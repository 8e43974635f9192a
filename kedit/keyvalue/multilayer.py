"""The spreading loop of MEMIT and its kin: layer by layer, every solve sees the changes made below it.

Which closed form is solved, and where the targets come from, is the caller's
(`kedit.methods.locate_then_edit.multi_layer`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.errors import KeditError
from kedit.forward.replay import Role
from kedit.keyvalue.keys import hidden_states, mean_keys
from kedit.model.lm import LM
from kedit.request import EditRequest

Solve = Callable[[int, Tensor, Tensor], Factors]
"""The layer, keys `[n, d_in]` and residuals `[n, d_model]` (both float64) -> the layer's change."""


@dataclass
class JointSolve:
    """Requests that are solved together, and what came of it.

    Attributes:
        members: Their numbers among all requests.
        changes: Module path -> float32 factors, filled in layer by layer; empty where it failed.
        keys: Layer -> the keys that were solved with, `[n, d_in]` float64, likewise.
        shares: For each layer, the share of its residual that the update realises on every member's own key.
        error: Why it failed.
    """

    members: list[int]
    changes: dict[str, Factors] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    shares: list[Tensor] = field(default_factory=list)
    error: str | None = None

    def add(self, layer: int, path: str, factors: Factors, keys: Tensor, shares: Tensor) -> None:
        """Takes up what was solved at a layer."""
        self.changes[path], self.keys[layer] = factors, keys
        self.shares.append(shares)

    def fail(self, error: str) -> None:
        """Empties itself and remembers why."""
        self.error = error
        self.changes.clear()
        self.keys.clear()


def solve_layers(
    lm: LM,
    requests: Sequence[EditRequest],
    targets: Tensor,
    systems: Sequence[JointSolve],
    layers: Sequence[int],
    contexts: Sequence[str],
    weights: Sequence[float],
    solve: Solve,
    together: bool,
    role: Role = "output",
    divisor: Callable[[int], float] = float,
) -> tuple[Tensor, Tensor]:
    """Solve every system over `layers`, ascending (MEMIT, algorithm 1; baselines 1.0, "Multi-layer spreading loop").

    At the i-th of L layers the residual is (z - h) / divisor(L - i), with keys and h of the model as changed so far.
    The model's weights are those of before when this returns, bit for bit.

    Args:
        lm: The model, with the weights that the edit starts from.
        requests: All requests.
        targets: z, the state wanted at the subject's last token in `layers[-1]`, `[n, d_model]`.
        systems: A partition of the requests; each gets its `changes` here.
        layers: Edited layers, ascending.
        contexts: Context templates over which keys are averaged.
        weights: Their weights.
        solve: The closed form; a `KeditError` from it fails its system.
        together: There is one system, written into the weights while the layers above it are solved. Otherwise
            every system has the model to itself: they run side by side as lanes, and no weight is touched.
        role: Which state h and z are: MEMIT's is the residual stream that leaves the layer.
        divisor: Of the residual, where so many layers are left to solve: MEMIT's is that number.

    Returns:
        The norms of z - h before the edit and after it, `[n]` each; NaN after a failure of everything.
    """
    missing = []
    private: dict[str, Any] = {}
    with ExitStack() as written:
        for i, layer in enumerate(layers):
            residuals = targets - hidden_states(lm, requests, layers[-1], role=role, **private)
            missing.append(residuals.norm(dim=-1))
            keys = mean_keys(lm, requests, contexts, weights, layer, **private)
            path = lm.arch.path("mlp_out", layer)
            for system in systems:
                _solve(system, path, keys, residuals / divisor(len(layers) - i), layer, solve)
            if all(system.error for system in systems):
                return missing[0], torch.full_like(missing[0], float("nan"))
            if together:
                written.enter_context(edited(lm.model, Delta({path: systems[0].changes[path]})))
            else:
                lane_of = {member: lane for lane, system in enumerate(systems) for member in system.members}
                bank = BatchedDeltas(lm.model, [Delta(system.changes) for system in systems])
                private = {"bank": bank, "lanes": [lane_of[member] for member in range(len(requests))]}
        after = (targets - hidden_states(lm, requests, layers[-1], role=role, **private)).norm(dim=-1)
    return missing[0], after


def _solve(system: JointSolve, path: str, keys: Tensor, residuals: Tensor, layer: int, solve: Solve) -> None:
    """One layer of one system; a failure empties the system and is remembered in it."""
    if system.error is not None:
        return
    keys, residuals = keys[system.members], residuals[system.members]
    try:
        if not bool(keys.isfinite().all() and residuals.isfinite().all()):
            raise KeditError(f"keys or hidden states are not finite at layer {layer}")
        exact = solve(layer, keys, residuals)
        if exact.rank != len(keys):
            raise ValueError(f"a closed form for {len(keys)} requests gave a change of rank {exact.rank}")
        factors = Factors(exact.left.float(), exact.right.float())
        if not bool(factors.left.isfinite().all() and factors.right.isfinite().all()):
            raise KeditError(f"the update of layer {layer} is not finite")
    except KeditError as error:
        system.fail(str(error))
        return
    system.add(layer, path, factors, keys, (exact.right * keys.to(exact.right)).sum(-1))
