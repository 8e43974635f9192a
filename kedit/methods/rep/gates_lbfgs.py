"""L-BFGS for many logistic regressions side by side (Nocedal and Wright, Numerical Optimization, chapters 3 and 7).

The device holds what is as wide as a key, and hands back five numbers per regression at every evaluation; the host
decides on the step lengths. Along a direction the logits are linear, so that an evaluation reads no key. The inverse
Hessian is in the compact form of Byrd, Nocedal and Schnabel (1994), which is a fixed number of batched products.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ARMIJO, WOLFE = 1e-4, 0.9
TRIES = 25  # step lengths along one direction, at most
STILL = 1e-9  # a slope, a step or a gain of less ends a regression
FLAT = 1e-7  # so does a gradient of less
Floats = np.ndarray


def minimise(x: Tensor, label: Tensor, balance: Tensor, ridge: float, steps: int) -> Tensor:
    """Weights of n logistic regressions after some steps from zero.

    Args:
        x: Inputs `[n, N, D]`, float64.
        label: 0 or 1, `[n, N]`.
        balance: What each input weighs in the loss, `[n, N]`.
        ridge: Times the square of the weights, without that of the bias, is added to the loss.
        steps: Of each regression, at most.

    Returns:
        `[n, D + 1]`, the bias last.
    """
    problem = _Problem(x, label, balance, ridge)
    curvature = _Curvature(problem.weights, steps)
    gradient = problem.gradient()
    start, evaluations = problem.loss().cpu().numpy(), 1
    going, evaluated = np.ones(len(x), dtype=bool), np.full(len(x), 1)
    t = (1 / gradient.abs().sum(1)).clamp(max=1.0)
    for _ in range(steps):
        direction = curvature.direction(gradient)
        line = _Line(problem, direction, gradient)
        length, value, going, evaluations = line.search(t, start, going)
        evaluated += evaluations
        step = torch.from_numpy(length).to(x.device)[:, None] * direction
        problem.move(step, line, length)
        gradient, before = problem.gradient(), gradient
        curvature.add(step, gradient - before)
        gain, start = start - value, value
        going &= (length * line.widest > STILL) & (np.abs(gain) >= STILL) & (evaluated < steps * 5 // 4)
        if not going.any():
            break
        t = torch.ones_like(t)
    return problem.weights


class _Problem:
    """The regressions, at their present weights."""

    def __init__(self, x: Tensor, label: Tensor, balance: Tensor, ridge: float) -> None:
        self.x, self.label, self.balance, self.ridge = x, label, balance, ridge
        self.weights = x.new_zeros(len(x), x.shape[2] + 1)
        self.logits = x.new_zeros(label.shape)

    def along(self, direction: Tensor) -> Tensor:
        """How the logits change along a direction `[n, D + 1]`: `[n, N]`."""
        return torch.bmm(self.x, direction[:, :-1, None])[..., 0] + direction[:, -1:]

    def loss(self) -> Tensor:
        """`[n]`."""
        return self.cross_entropy(self.logits) + self.ridge * self.weights[:, :-1].square().sum(1)

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """`[n]`."""
        return ((F.softplus(logits, threshold=40.0) - self.label * logits) * self.balance).sum(1)

    def errors(self, logits: Tensor) -> Tensor:
        """Derivative of the cross entropy by the logits, `[n, N]`."""
        return (logits.sigmoid() - self.label) * self.balance

    def gradient(self) -> Tensor:
        """`[n, D + 1]`."""
        errors = self.errors(self.logits)
        by_weights = torch.bmm(errors[:, None], self.x)[:, 0] + 2 * self.ridge * self.weights[:, :-1]
        return torch.cat([by_weights, errors.sum(1, keepdim=True)], 1)

    def move(self, step: Tensor, line: _Line, length: Floats) -> None:
        """Goes a step `[n, D + 1]`, which is so long on a line."""
        self.weights += step
        self.logits += torch.from_numpy(length).to(step.device)[:, None] * line.along


class _Line:
    """The losses along a direction.

    Attributes:
        along: How the logits change, `[n, N]`.
        widest: Largest number of each direction, `[n]`; known after `search`.
    """

    def __init__(self, problem: _Problem, direction: Tensor, gradient: Tensor) -> None:
        self.problem, self.along = problem, problem.along(direction)
        w, d = problem.weights[:, :-1], direction[:, :-1]
        self._squares = torch.stack([w.square().sum(1), 2 * (w * d).sum(1), d.square().sum(1)])
        self._facts = torch.stack(
            [(gradient * direction).sum(1), direction.abs().amax(1), gradient.abs().amax(1)]
        )  # slope at 0, and what ends a regression
        self.widest: Floats = np.zeros(len(gradient))

    def look(self, t: Tensor) -> Floats:
        """Loss and slope at t `[n]`, the slope at 0, the direction's and the gradient's largest number, t: `[6, n]`."""
        p, (ww, wd, dd) = self.problem, self._squares
        logits = p.logits + t[:, None] * self.along
        loss = p.cross_entropy(logits) + p.ridge * (ww + t * (wd + t * dd))
        slope = (p.errors(logits) * self.along).sum(1) + p.ridge * (wd + 2 * t * dd)
        return torch.cat([torch.stack([loss, slope]), self._facts, t[None]]).cpu().numpy()

    def search(self, t: Tensor, start: Floats, going: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Steps that fulfil the strong Wolfe conditions.

        Args:
            t: What is tried first, `[n]`.
            start: The losses at 0, `[n]`.
            going: Which regressions go on, `[n]` bool.

        Returns:
            Length of the step (0 where none goes on), loss there, which go on, evaluations; `[n]` each.
        """
        value, slope, first, self.widest, largest, at = self.look(t)
        going = going & (largest > FLAT) & (first <= -STILL)
        open_, used = going.copy(), going.astype(np.int64)
        low, high = _Points(np.zeros_like(at), start, first), _Points(np.full_like(at, np.inf), start, first)
        for _ in range(TRIES):
            enough = value <= start + ARMIJO * at * first
            fine = open_ & enough & (np.abs(slope) <= -WOLFE * first)
            beyond = open_ & ~fine & (~enough | (slope >= 0))
            behind = low.copy()
            low.put(open_ & ~beyond, at, value, slope)
            high.put(beyond, at, value, slope)
            open_ &= ~fine
            if not open_.any():
                break
            inside = np.isfinite(high.t)
            edge = np.where(inside, 0.1 * (high.t - low.t), 0.0)
            least = np.where(inside, low.t + edge, low.t + 0.01 * (low.t - behind.t))
            most = np.where(inside, high.t - edge, 10 * low.t)
            guess = np.where(inside, _cubic(low, high, least, most), _cubic(behind, low, least, most))
            at = np.where(open_, guess, at)
            found = self.look(torch.from_numpy(at).to(t.device))
            value, slope = found[0], found[1]
            used += open_
        return np.where(going, low.t, 0.0), np.where(going, low.value, start), going, used


class _Points:
    """A step length of each regression, with loss and slope there."""

    def __init__(self, t: Floats, value: Floats, slope: Floats) -> None:
        self.t, self.value, self.slope = t.copy(), value.copy(), slope.copy()

    def copy(self) -> _Points:
        return _Points(self.t, self.value, self.slope)

    def put(self, where: Floats, t: Floats, value: Floats, slope: Floats) -> None:
        for mine, new in ((self.t, t), (self.value, value), (self.slope, slope)):
            np.copyto(mine, new, where=where)


def _cubic(a: _Points, b: _Points, least: Floats, most: Floats) -> Floats:
    """Minimum of the cubic through two points with their slopes, within bounds; their middle where there is none."""
    with np.errstate(all="ignore"):
        width = b.t - a.t
        middle = a.slope + b.slope - 3 * (b.value - a.value) / width
        root = np.sqrt(middle**2 - a.slope * b.slope) * np.sign(width)
        found = b.t - width * (b.slope + root - middle) / (b.slope - a.slope + 2 * root)
    return np.clip(np.where(np.isfinite(found), found, (least + most) / 2), least, most)


class _Curvature:
    """The inverse Hessian, from the steps and the changes of the gradient; a pair without curvature is left out."""

    def __init__(self, weights: Tensor, most: int) -> None:
        n, width = weights.shape
        self.count = 0
        self.scale = weights.new_ones(n, 1)
        self.steps, self.changes = weights.new_zeros(n, most, width), weights.new_zeros(n, most, width)
        self.mixed = torch.eye(most, dtype=weights.dtype, device=weights.device).repeat(n, 1, 1)  # s_i . y_j, i <= j
        self.squares = weights.new_zeros(n, most, most)  # y_i . y_j

    def add(self, step: Tensor, change: Tensor) -> None:
        """Takes up a step and the change of the gradient, `[n, D + 1]` each."""
        k, self.count = self.count, self.count + 1
        bent = (step * change).sum(1, keepdim=True) > 1e-10
        self.steps[:, k], self.changes[:, k] = step * bent, change * bent
        pair = self.changes[:, k, :, None]
        mixed = torch.bmm(self.steps[:, : k + 1], pair)[..., 0]
        squares = torch.bmm(self.changes[:, : k + 1], pair)[..., 0]
        self.scale = torch.where(bent, mixed[:, k:] / squares[:, k:], self.scale)
        self.mixed[:, : k + 1, k] = mixed
        self.mixed[:, k, k] = torch.where(bent, mixed[:, k:], 1.0)[:, 0]
        self.squares[:, : k + 1, k] = self.squares[:, k, : k + 1] = squares

    def direction(self, gradient: Tensor) -> Tensor:
        """Minus the inverse Hessian times the gradient, `[n, D + 1]`."""
        k = self.count
        if not k:
            return -gradient
        steps, changes, mixed = self.steps[:, :k], self.changes[:, :k], self.mixed[:, :k, :k]
        by_steps, by_changes = (torch.bmm(part, gradient[..., None]) for part in (steps, changes))
        p = torch.linalg.solve_triangular(mixed, by_steps, upper=True)
        scale = self.scale[..., None]
        inner = mixed.diagonal(dim1=1, dim2=2)[..., None] * p
        inner = inner + scale * (torch.bmm(self.squares[:, :k, :k], p) - by_changes)
        q = torch.linalg.solve_triangular(mixed.mT, inner, upper=False)
        back = torch.bmm(q.mT, steps) - scale * torch.bmm(p.mT, changes)
        return -(self.scale * gradient + back[:, 0])
