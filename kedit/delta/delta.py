"""Changes of a model: kept as factors, slices, biases and pathways, applied to it, put back bit for bit.

A `Delta` never holds a second copy of the model. What is written into weights is added in float32 and
rounded once; what must be put back is a snapshot of what is touched, taken when it is touched
(`kedit.delta.master_weights`). Lanes (many private deltas in one forward pass) are in `kedit.delta.lanes`, files in
`kedit.delta.serialization`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kedit.delta.gate_state import GateHistory
from kedit.delta.master_weights import ParameterBackup
from kedit.delta.open_blocks import enter, leave
from kedit.delta.pathway import Pathway, PathwayRouter
from kedit.delta.slices import Slices
from kedit.errors import KeditError
from kedit.model.architecture import weight


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

    Paths name modules (`"model.layers.5.mlp.down_proj"`); factors and slices are in the mathematical orientation
    `[d_out, d_in]` whatever the module's storage (`Conv1D` is handled when the change is written). A matrix may
    have both: they add up.

    Attributes:
        changes: Module path -> low-rank change of its weight.
        pathways: Module path -> adapters on its input, in the order of their edits (REP).
        slices: Module path -> change of a few rows or columns of its weight (PAC).
        biases: Module path -> change of its bias, `[d_out]` float32.
    """

    changes: Mapping[str, Factors] = field(default_factory=dict)
    pathways: Mapping[str, tuple[Pathway, ...]] = field(default_factory=dict)
    slices: Mapping[str, Slices] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules that this delta touches, checked for existence and shape.

        Raises:
            KeditError: The model lacks a module or a bias, or has it in another shape: a delta of another model.
        """
        named = dict(model.named_modules())
        for path in self.paths:
            if path not in named:
                raise KeditError(f"this delta changes {path!r}, which this model does not have: it is of another model")
        for path, pathways in self.pathways.items():
            width = weight(named[path]).shape[1]
            if any(pathway.d_in != width for pathway in pathways):
                raise KeditError(f"this delta has a pathway of another width than {path!r} ({width}) here")
        shapes = [(path, (f.left.shape[0], f.right.shape[1])) for path, f in self.changes.items()]
        for path, shape in shapes + [(path, slices.shape) for path, slices in self.slices.items()]:
            found = tuple(weight(named[path]).shape)
            if found != shape:
                raise KeditError(
                    f"this delta changes {path!r} of shape {shape}, here it is {found}: it is of another model"
                )
        for path, change in self.biases.items():
            shape, bias = tuple(change.shape), _bias(named[path])
            if bias is None or tuple(bias.shape) != shape:
                here = "there is none" if bias is None else f"it is {tuple(bias.shape)}"
                raise KeditError(
                    f"this delta changes the bias of {path!r} of shape {shape}, here {here}: it is of another model"
                )
        return {path: named[path] for path in self.paths}

    @property
    def paths(self) -> list[str]:
        """Every module that is touched."""
        return list(dict.fromkeys([*self.changes, *self.pathways, *self.slices, *self.biases]))

    def to(self, device: torch.device | str) -> Delta:
        """The same delta on `device`."""
        return Delta(
            {path: factors.to(device) for path, factors in self.changes.items()},
            {path: tuple(p.to(device) for p in pathways) for path, pathways in self.pathways.items()},
            {path: slices.to(device) for path, slices in self.slices.items()},
            {path: change.to(device) for path, change in self.biases.items()},
        )

    def numbers(self) -> Iterator[tuple[str, Tensor]]:
        """What is added to weights and biases: module path and a tensor, factors one by one."""
        for path, factors in self.changes.items():
            yield path, factors.left
            yield path, factors.right
        for path, slices in self.slices.items():
            yield path, slices.values
        yield from self.biases.items()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that it is made of, pathways included: module path and a tensor, one by one."""
        yield from self.numbers()
        for path, pathways in self.pathways.items():
            for tensor in chain.from_iterable(pathway.tensors().values() for pathway in pathways):
                yield path, tensor

    def norm(self) -> float:
        """Frobenius norm over all changed weights and biases, from the factors' small Gram matrices."""
        total = 0.0
        for path, f in self.changes.items():
            left, right = f.left.double(), f.right.double()
            total += float(((left.T @ left) * (right @ right.T)).sum())
            if path in self.slices:
                total += 2 * self.slices[path].inner(left, right)
        total += sum(slices.square_norm() for slices in self.slices.values())
        total += sum(float(change.double().square().sum()) for change in self.biases.values())
        return max(total, 0.0) ** 0.5

    @staticmethod
    def concat(deltas: Sequence[Delta]) -> Delta:
        """The sum of `deltas` as one delta: ranks add up, pathways are lined up, slices and biases are added.

        Raises:
            KeditError: One delta changes rows and another one columns of the same matrix.
        """
        changes: dict[str, Factors] = {}
        for path in dict.fromkeys(path for delta in deltas for path in delta.changes):
            parts = [delta.changes[path] for delta in deltas if path in delta.changes]
            changes[path] = Factors(torch.cat([p.left for p in parts], 1), torch.cat([p.right for p in parts], 0))
        adapted = list(dict.fromkeys(path for delta in deltas for path in delta.pathways))
        pathways = {path: tuple(p for delta in deltas for p in delta.pathways.get(path, ())) for path in adapted}
        slices: dict[str, Slices] = {}
        for path in dict.fromkeys(path for delta in deltas for path in delta.slices):
            own = [delta.slices[path] for delta in deltas if path in delta.slices]
            if len({part.axis for part in own}) > 1:
                raise KeditError(f"rows and columns of {path!r} are changed: they cannot be joined to one delta")
            slices[path] = Slices.add(own)
        biases: dict[str, Tensor] = {}
        for delta in deltas:
            for path, change in delta.biases.items():
                biases[path] = biases[path] + change if path in biases else change
        return Delta(changes, pathways, slices, biases)


class Weights:
    """Writes deltas into a model and puts the original weights back bit for bit.

    Pathways are put before their modules as hooks, and taken away again.

    The first write keeps what it overwrites: a copy of the matrix, or of the touched rows or columns alone.
    Half-precision weights get a float32 master of the same extent, so that in the sequential regime changes far
    below their resolution add up instead of rounding away.

    Args:
        model: The model whose weights are written, in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._matrices: defaultdict[str, ParameterBackup] = defaultdict(ParameterBackup)
        self._biases: defaultdict[str, ParameterBackup] = defaultdict(ParameterBackup)
        self._pathways: dict[str, tuple[Pathway, ...]] = {}
        self._hooks: dict[str, list[RemovableHandle]] = {}
        self._openings = GateHistory(model)
        self._following: list[RemovableHandle] = []

    @torch.no_grad()
    def add(self, delta: Delta) -> None:
        """Write `delta` on top of what was written before.

        Raises:
            KeditError: The delta does not fit the model, or holds a value that is not finite; in both
                cases nothing is written.
        """
        modules = delta.modules(self.model)
        for path, numbers in delta.tensors():
            if not torch.isfinite(numbers).all():
                raise KeditError(f"the delta of {path!r} holds values that are not finite; nothing was written")
        for path, factors in delta.changes.items():
            w = weight(modules[path])
            self._matrices[path].add(w, factors.to(w.device).dense())
        for path, slices in delta.slices.items():
            w = weight(modules[path])
            self._matrices[path].add_slices(w, slices.to(w.device))
        for path, change in delta.biases.items():
            bias = cast(Tensor, _bias(modules[path]))
            self._biases[path].add(bias, change.to(bias.device))
        for path, pathways in delta.pathways.items():
            device = weight(modules[path]).device
            self._pathways[path] = (*self._pathways.get(path, ()), *(p.to(device) for p in pathways))
            for hook in self._hooks.pop(path, ()):
                hook.remove()
            bank = PathwayRouter(self._pathways[path])
            if bank.remembers and not self._following:
                self._following = self._openings.install()
            self._hooks[path] = bank.install(modules[path], self._openings, _block(self.model, path))

    @torch.no_grad()
    def restore(self) -> None:
        """Put every touched weight and bias back to the bits it had before the first write."""
        modules = dict(self.model.named_modules())
        for path, written in self._matrices.items():
            written.restore(weight(modules[path]))
        for path, written in self._biases.items():
            written.restore(cast(Tensor, _bias(modules[path])))
        for hook in chain(*self._hooks.values(), self._following):
            hook.remove()
        for kept in (self._matrices, self._biases, self._pathways, self._hooks, self._following):
            kept.clear()


class _Edited:
    """Deltas that an `edited` block writes."""

    def __init__(self, model: nn.Module, deltas: Sequence[Delta]) -> None:
        self._weights, self._deltas = Weights(model), deltas
        self.restore = self._weights.restore

    def write(self) -> None:
        for delta in self._deltas:
            self._weights.add(delta)


@contextmanager
def edited(model: nn.Module, *deltas: Delta) -> Iterator[nn.Module]:
    """Inside the block `model` carries `deltas`; afterwards its weights are the old ones, bit for bit.

    Also after an exception inside the block, or Ctrl-C. Blocks may be nested. Where they are left in another order (two
    generators), what is left of them stays, and the last one leaves the old weights.

    Args:
        model: The model to edit, in place (an `LM`'s `.model`).
        deltas: What to write, in order.

    Yields:
        The same model.

    Raises:
        KeditError: A delta does not fit the model; another thread has a block open on it.
    """
    block = _Edited(model, deltas)
    try:
        enter(model, block)
        yield model
    finally:
        try:
            leave(model, block)
        except (KeyboardInterrupt, SystemExit):
            leave(model, block)  # the signal came right before signals were held back; done before, it does nothing
            raise


def _bias(module: nn.Module) -> Tensor | None:
    """b of a linear map `v = W k + b`; None where there is none."""
    weight(module)  # refuses what is no linear map
    return cast("Tensor | None", module.bias)


def _block(model: nn.Module, path: str) -> nn.Module | None:
    """The numbered layer around a module, `model.layers.5` of `model.layers.5.mlp.down_proj`; None if there is none."""
    parts = path.split(".")
    ends = [i for i, part in enumerate(parts) if part.isdigit()]
    return model.get_submodule(".".join(parts[: ends[-1] + 1])) if ends else None
