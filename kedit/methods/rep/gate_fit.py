"""The logistic gates of REP: weights by 60 steps of L-BFGS, of one gate after another or of all side by side.

The steps end before the weights have settled (they are still some 4 to 24 % from the optimum), which makes them
sensitive: one part in ten million in a key moves a gate by half a percent. On a CPU each gate is fitted by itself in
float32, with torch's optimiser. On any other device that would wait for the host a hundred times per gate; there all
gates take the same steps side by side, in float64, so that neither the number of gates nor an order of summation shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kedit.delta import waits
from kedit.methods.rep.gates_lbfgs import minimise

RIDGE = 1e-3  # on the weights of keys whose dimensions have unit mean square
STEPS = 60
MOST = 2**28  # numbers of keys that are fitted side by side, at most


@dataclass(frozen=True)
class GateKeys:
    """What a gate learns to tell apart; keys of one width, float32.

    Attributes:
        positives: `[P, D]`; they weigh as much as both kinds of negatives, which weigh alike.
        negatives: `[M, D]`.
        hard_negatives: `[K, D]`.
    """

    positives: Tensor
    negatives: Tensor
    hard_negatives: Tensor

    @property
    def groups(self) -> list[tuple[Tensor, float]]:
        """The kinds that there are, and what each weighs."""
        kinds = [(self.positives, 0.5), (self.negatives, 0.25), (self.hard_negatives, 0.25)]
        return [(keys, share) for keys, share in kinds if len(keys)]

    @property
    def rows(self) -> int:
        """Number of keys."""
        return sum(len(keys) for keys, _ in self.groups)


def fit_gates(gates: Sequence[GateKeys]) -> list[dict[str, Tensor]]:
    """`read` `[D]` and `bias` `[]` of every gate: the logit of a key k is read . k / ||k|| + bias.

    The loss is the cross entropy, each kind of keys in balance, with a ridge on the weights.
    """
    if not gates or not waits.waiting_costs(gates[0].positives.device):
        return [_fit_alone(gate) for gate in gates]
    return [fit for some in _side_by_side(gates) for fit in _fit_together(some)]


def _side_by_side(gates: Sequence[GateKeys]) -> Iterator[Sequence[GateKeys]]:
    """Equal parts, none of which holds more than MOST numbers in all, or one gate alone."""
    numbers = len(gates) * max(gate.rows for gate in gates) * gates[0].positives.shape[1]
    parts = min(len(gates), -(-numbers // MOST))
    size = -(-len(gates) // parts)
    for start in range(0, len(gates), size):
        yield gates[start : start + size]


def _fit_alone(gate: GateKeys) -> dict[str, Tensor]:
    """One gate, by torch's L-BFGS."""
    keys = torch.cat([keys for keys, _ in gate.groups])
    label = torch.zeros(len(keys)).to(keys)
    label[: len(gate.positives)] = 1.0
    balance = torch.cat([torch.full((len(keys),), share / len(keys)) for keys, share in gate.groups]).to(keys)
    unit = F.normalize(keys, dim=-1)
    spread = unit[len(gate.positives) :].square().mean(0).clamp(min=1e-12).rsqrt()
    x = unit * spread
    weights = torch.zeros(x.shape[1] + 1, dtype=x.dtype, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

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


@torch.no_grad()
def _fit_together(gates: Sequence[GateKeys]) -> list[dict[str, Tensor]]:
    """Gates side by side; missing keys are zeros of no weight."""
    first = gates[0].positives
    n, rows, d = len(gates), max(gate.rows for gate in gates), first.shape[1]
    x = torch.zeros(n, rows, d, dtype=torch.float64, device=first.device)
    label, balance, outside = (torch.zeros(n, rows, dtype=torch.float64) for _ in range(3))
    for i, gate in enumerate(gates):
        x[i, : gate.rows] = torch.cat([keys for keys, _ in gate.groups])
        label[i, : len(gate.positives)] = 1.0
        balance[i, : gate.rows] = torch.cat(
            [torch.full((len(keys),), share / len(keys), dtype=torch.float64) for keys, share in gate.groups]
        )
        negatives = gate.rows - len(gate.positives)
        outside[i, len(gate.positives) : gate.rows] = 1.0 / max(1, negatives)
    label, balance, outside = (part.to(first.device) for part in (label, balance, outside))
    x /= torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)
    mean_square = sum(
        torch.bmm(share[:, None], some.square())[:, 0]
        for some, share in zip(x.split(512, 1), outside.split(512, 1), strict=True)
    )
    spread = cast(Tensor, mean_square).clamp(min=1e-12).rsqrt()
    x *= spread[:, None]
    weights = minimise(x, label, balance, RIDGE, STEPS)
    read, bias = apart((weights[:, :-1] * spread).float()), apart(weights[:, -1].float())
    return [{"read": r, "bias": b} for r, b in zip(read, bias, strict=True)]


def apart(tensor: Tensor) -> tuple[Tensor, ...]:
    """The rows of a tensor, each with memory of its own, from one operation."""
    return cast(tuple[Tensor, ...], torch.unbind_copy(tensor))
