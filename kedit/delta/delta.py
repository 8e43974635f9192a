"""`Delta`: what an edit changes in a model, as changes of its modules.

It never holds a second copy of the model. How it is applied and taken back is in `kedit.delta.apply`, lanes (many
private deltas in one forward pass) in `kedit.delta.lanes`, files in `kedit.delta.serialization`.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from kedit.delta.change import Change
from kedit.delta.kinds import in_order
from kedit.errors import KeditError

C = TypeVar("C", bound=Change)


class Delta:
    """What one edit batch (or a whole run) changes.

    A module may have changes of several kinds, one of each: they add up, and are written in the order of
    `kedit.delta.kinds`.

    Args:
        changes: Module path (`"model.layers.5.mlp.down_proj"`) -> its change, for one kind after another.

    Raises:
        ValueError: Two changes of one kind at one module; `Delta.concat` adds.
    """

    def __init__(self, *changes: Mapping[str, Change]) -> None:
        found: dict[str, dict[type[Change], Change]] = {}
        for mapping in changes:
            for path, change in mapping.items():
                if type(change) in found.setdefault(path, {}):
                    raise ValueError(f"two changes of {path!r} are {type(change).__name__}: join them first")
                found[path][type(change)] = change
        self._changes = {path: tuple(own[kind] for kind in in_order(own)) for path, own in found.items()}

    @property
    def paths(self) -> list[str]:
        """Every module that is touched."""
        return list(self._changes)

    @property
    def kinds(self) -> list[type[Change]]:
        """The kinds of its changes, in order."""
        return in_order(type(change) for own in self._changes.values() for change in own)

    @property
    def fits_lanes(self) -> bool:
        """Whether it can run beside others in lanes."""
        return all(kind.fits_lanes for kind in self.kinds)

    def items(self) -> ItemsView[str, tuple[Change, ...]]:
        """Module path and its changes, in the order in which they are written."""
        return self._changes.items()

    def of_kind(self, kind: type[C]) -> dict[str, C]:
        """Module path -> its change of that kind, e.g. `delta.of_kind(Factors)`."""
        return {path: change for path, own in self.items() for change in own if type(change) is kind}

    def with_changes(self, changes: Mapping[str, Change]) -> Delta:
        """The same delta with `changes` in the place of those of their kind at their modules."""
        kept = [(path, change) for path, own in self.items() for change in own]
        return Delta(*({path: one} for path, one in kept if type(changes.get(path)) is not type(one)), changes)

    def modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules that this delta touches, checked for existence and shape.

        Raises:
            KeditError: The model lacks a module or a bias, or has it in another shape: a delta of another model.
        """
        named = dict(model.named_modules())
        for path in self.paths:
            if path not in named:
                raise KeditError(f"this delta changes {path!r}, which this model does not have: it is of another model")
        for path, own in self.items():
            for change in own:
                change.check(path, named[path])
        return {path: named[path] for path in self.paths}

    def to(self, device: torch.device | str) -> Delta:
        """The same delta on `device`."""
        return Delta(*({path: change.to(device)} for path, own in self.items() for change in own))

    def numbers(self) -> Iterator[tuple[str, Tensor]]:
        """The float32 tensors that it is made of, with the paths of their modules."""
        for path, own in self.items():
            for change in own:
                for tensor in change.numbers():
                    yield path, tensor

    def norm(self) -> float:
        """Frobenius norm over all changed weights and biases."""
        total = 0.0
        for kind in self.kinds:
            of_kind = 0.0
            for path, change in self.of_kind(kind).items():
                of_kind += change.square_norm()
                for later in reversed(self._changes[path]):
                    if later is change:
                        break
                    of_kind += 2 * later.inner(change)
            total += of_kind
        return max(total, 0.0) ** 0.5

    @staticmethod
    def concat(deltas: Sequence[Delta]) -> Delta:
        """The sum of `deltas` as one delta: each kind adds its changes of a module, in the order given.

        Raises:
            KeditError: One delta changes rows and another one columns of the same matrix.
        """
        joined: list[dict[str, Change]] = []
        for kind in in_order(kind for delta in deltas for kind in delta.kinds):
            parts: dict[str, list[Change]] = {}
            for delta in deltas:
                for path, change in delta.of_kind(kind).items():
                    parts.setdefault(path, []).append(change)
            for path, own in parts.items():
                try:
                    joined.append({path: kind.add(own)})
                except ValueError as error:
                    raise KeditError(f"changes of {path!r} cannot be joined to one delta: {error}") from None
        return Delta(*joined)
