"""Changes of a model: kept as factors (and pathways), applied to it, put back bit for bit.

A `Delta` never holds a second copy of the model. What is written into weights is added in float32 and
rounded once; what must be put back is a snapshot of the touched matrices, taken when they are touched.
Lanes (many private deltas in one forward pass) are in `kedit.lanes`, files in `kedit.deltafile`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kedit.arch import weight
from kedit.errors import KeditError
from kedit.pathway import Bank, Pathway


@dataclass(frozen=True)
class Factors:
    """A low-rank change of one matrix: `W' = W + left @ right`.

    Attributes:
        left: `[d_out, r]`, float32.
        right: `[r, d_in]`, float32.
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ValueError(f"factors do not fit: {tuple(self.left.shape)} @ {tuple(self.right.shape)}")

    @property
    def rank(self) -> int:
        """Number of columns of `left`."""
        return self.left.shape[1]

    def dense(self) -> Tensor:
        """The change itself, `[d_out, d_in]` in the factors' dtype."""
        return self.left @ self.right

    def to(self, device: torch.device | str) -> Factors:
        """The same factors on `device`."""
        return Factors(self.left.to(device), self.right.to(device))


@dataclass(frozen=True)
class Delta:
    """What one edit batch (or a whole run) changes.

    Paths name modules (`"model.layers.5.mlp.down_proj"`); the factors are in the mathematical orientation
    `[d_out, d_in]` whatever the module's storage (`Conv1D` is handled when the change is written).

    Attributes:
        changes: Module path -> change of its weight.
        pathways: Module path -> adapters on its input, in the order of their edits (REP).
    """

    changes: Mapping[str, Factors] = field(default_factory=dict)
    pathways: Mapping[str, tuple[Pathway, ...]] = field(default_factory=dict)

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules that this delta touches, checked for existence and shape.

        Raises:
            KeditError: The model lacks a module or its weight has another shape: a delta of another model.
        """
        named = dict(model.named_modules())
        for path in self.paths:
            if path not in named:
                raise KeditError(f"this delta changes {path!r}, which this model does not have: it is of another model")
        for path, pathways in self.pathways.items():
            width = weight(named[path]).shape[1]
            if any(pathway.d_in != width for pathway in pathways):
                raise KeditError(f"this delta has a pathway of another width than {path!r} ({width}) here")
        for path, factors in self.changes.items():
            shape = (factors.left.shape[0], factors.right.shape[1])
            found = tuple(weight(named[path]).shape)
            if found != shape:
                raise KeditError(
                    f"this delta changes {path!r} of shape {shape}, here it is {found}: it is of another model"
                )
        return {path: named[path] for path in self.paths}

    @property
    def paths(self) -> list[str]:
        """Every module that is touched."""
        return list(dict.fromkeys([*self.changes, *self.pathways]))

    def to(self, device: torch.device | str) -> Delta:
        """The same delta on `device`."""
        return Delta(
            {path: factors.to(device) for path, factors in self.changes.items()},
            {path: tuple(p.to(device) for p in pathways) for path, pathways in self.pathways.items()},
        )

    def norm(self) -> float:
        """Frobenius norm over all changed matrices, from the factors' small Gram matrices."""
        total = 0.0
        for f in self.changes.values():
            left, right = f.left.double(), f.right.double()
            total += float(((left.T @ left) * (right @ right.T)).sum())
        return max(total, 0.0) ** 0.5

    @staticmethod
    def concat(deltas: Sequence[Delta]) -> Delta:
        """The sum of `deltas` as one delta: ranks add up, pathways are lined up."""
        paths = list(dict.fromkeys(path for delta in deltas for path in delta.changes))
        changes: dict[str, Factors] = {}
        for path in paths:
            parts = [delta.changes[path] for delta in deltas if path in delta.changes]
            changes[path] = Factors(torch.cat([p.left for p in parts], 1), torch.cat([p.right for p in parts], 0))
        adapted = list(dict.fromkeys(path for delta in deltas for path in delta.pathways))
        pathways = {path: tuple(p for delta in deltas for p in delta.pathways.get(path, ())) for path in adapted}
        return Delta(changes, pathways)


class Weights:
    """Writes deltas into a model and puts the original weights back bit for bit.

    Pathways are put before their modules as hooks, and taken away again.

    The first write to a matrix keeps its original (one copy per *edited* matrix). Matrices in half precision
    get a float32 master, so that in the sequential regime changes far below their resolution add up instead
    of rounding away.

    Args:
        model: The model whose weights are written, in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._original: dict[str, Tensor] = {}
        self._master: dict[str, Tensor] = {}
        self._pathways: dict[str, tuple[Pathway, ...]] = {}
        self._hooks: dict[str, RemovableHandle] = {}

    @torch.no_grad()
    def add(self, delta: Delta) -> None:
        """Write `delta` on top of what was written before.

        Raises:
            KeditError: The delta does not fit the model, or holds a value that is not finite; in both
                cases nothing is written.
        """
        modules = delta.modules(self.model)
        for path, factors in delta.changes.items():
            if not (torch.isfinite(factors.left).all() and torch.isfinite(factors.right).all()):
                raise KeditError(f"the delta of {path!r} holds values that are not finite; nothing was written")
        for path, factors in delta.changes.items():
            w = weight(modules[path])
            if path not in self._original:
                self._original[path] = w.detach().clone()
                if w.dtype != torch.float32 and w.dtype != torch.float64:
                    self._master[path] = w.detach().float()
            master = self._master.get(path)
            target = w if master is None else master
            target += factors.to(w.device).dense().to(target.dtype)
            if master is not None:
                w.copy_(master)
        for path, pathways in delta.pathways.items():
            device = weight(modules[path]).device
            self._pathways[path] = (*self._pathways.get(path, ()), *(p.to(device) for p in pathways))
            if path in self._hooks:
                self._hooks.pop(path).remove()
            self._hooks[path] = Bank(self._pathways[path]).install(modules[path])

    @torch.no_grad()
    def restore(self) -> None:
        """Put every touched matrix back to the bits it had before the first write."""
        modules = dict(self.model.named_modules())
        for path, original in self._original.items():
            weight(modules[path]).copy_(original)
        for hook in self._hooks.values():
            hook.remove()
        for kept in (self._original, self._master, self._pathways, self._hooks):
            kept.clear()


@contextmanager
def edited(model: nn.Module, *deltas: Delta) -> Iterator[nn.Module]:
    """Inside the block `model` carries `deltas`; afterwards its weights are the old ones, bit for bit.

    Also after an exception inside the block. Blocks may be nested.

    Args:
        model: The model to edit, in place (an `LM`'s `.model`).
        deltas: What to write, in order.

    Yields:
        The same model.
    """
    weights = Weights(model)
    try:
        for delta in deltas:
            weights.add(delta)
        yield model
    finally:
        weights.restore()
