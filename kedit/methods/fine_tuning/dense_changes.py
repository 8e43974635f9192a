"""`DenseChanges`: whole matrices in training, as float32 changes beside the frozen weights, a set for each lane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kedit.delta.delta import Delta
from kedit.delta.dense import Dense
from kedit.model.architecture import weight
from kedit.model.lm import LM


class DenseChanges:
    """`y = W x + b + D x` at some linear maps, where D is trained and W is frozen, whatever its type.

    A model in half precision is trained in float32 this way. The bound on `|W' - W|` is one on D.

    Args:
        lm: The model.
        paths: The maps.
        n_lanes: Sets of changes, each with gradients of its own.
        bound: Most that an entry may change; None: any amount.
        weight_decay: Adam's L2 penalty, on the weights as they are changed.
    """

    def __init__(
        self, lm: LM, paths: Sequence[str], n_lanes: int = 1, bound: float | None = None, weight_decay: float = 0.0
    ) -> None:
        self.bound, self.weight_decay = bound, weight_decay
        self._maps = {path: lm.model.get_submodule(path) for path in paths}
        self._lanes = [{path: _zeros(weight(module)) for path, module in self._maps.items()} for _ in range(n_lanes)]

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser trains."""
        return [change for lane in self._lanes for change in lane.values()]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Around all steps; there is nothing to prepare."""
        yield

    @contextmanager
    def installed(self, lanes: Sequence[int]) -> Iterator[None]:
        """Inside, row i of every batch runs with the changes of `lanes[i]`."""
        with ExitStack() as stack:
            for path, module in self._maps.items():
                own = [self._lanes[lane][path] for lane in lanes]
                stack.callback(module.register_forward_hook(_Adding(own)).remove)
            yield

    @torch.no_grad()
    def before_step(self, lanes: Sequence[int]) -> None:
        """Decays the weights of the lanes that this step is about, and leaves the others without a gradient."""
        for lane, changes in enumerate(self._lanes):
            for path, change in changes.items():
                if lane not in lanes:
                    change.grad = None
                elif self.weight_decay and change.grad is not None:
                    change.grad.add_(weight(self._maps[path]) + change, alpha=self.weight_decay)

    @torch.no_grad()
    def after_step(self) -> None:
        """Clamps every entry to the bound."""
        if self.bound is not None:
            for change in self.parameters():
                change.clamp_(-self.bound, self.bound)

    def delta(self, lane: int = 0) -> Delta:
        """A lane's changes."""
        return Delta({path: Dense(change.detach().float()) for path, change in self._lanes[lane].items()})


class _Adding:
    """Forward hook: adds every row's change in float32 (float64 in a float64 model) and rounds once."""

    def __init__(self, changes: Sequence[Tensor]) -> None:
        self.changes = changes
        self.shared = all(change is changes[0] for change in changes)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x = args[0].to(self.changes[0].dtype)
        if self.shared:
            added = nn.functional.linear(x, self.changes[0])
        else:
            rows = x.reshape(len(self.changes), -1, x.shape[-1])  # some MLPs flatten rows
            own = [nn.functional.linear(row, change) for row, change in zip(rows, self.changes, strict=True)]
            added = torch.stack(own).reshape(output.shape)
        return (output.to(added.dtype) + added).to(output.dtype)


def _zeros(w: Tensor) -> nn.Parameter:
    """A change of nothing yet, `[d_out, d_in]`."""
    dtype = torch.promote_types(w.dtype, torch.float32)
    return nn.Parameter(torch.zeros(w.shape, dtype=dtype, device=w.device))
