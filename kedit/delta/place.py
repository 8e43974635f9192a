"""`Place`: a module of a model into which changes are written, and how each of them is taken back.

Changes of parameters go through a `ParameterBackup`. Changes of what a module reads are hooks: there is one set of them
for each kind, which is replaced when another change of that kind comes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from kedit.delta.gate_state import GateHistory
from kedit.delta.master_weights import ParameterBackup

T = TypeVar("T")


class Removable(Protocol):
    """A hook, or whatever else can be taken away again."""

    def remove(self) -> None:
        """Takes it away; once more does nothing."""


class Place:
    """One module of a model.

    Args:
        model: The whole model.
        path: The module's path in it.
        follow: Has the model's passes followed from now on, and gives what follows them.
    """

    def __init__(self, model: nn.Module, path: str, follow: Callable[[], GateHistory]) -> None:
        self._model, self._path = model, path
        self.follow = follow
        self._backups: defaultdict[Callable[[nn.Module], Tensor], ParameterBackup] = defaultdict(ParameterBackup)
        self._installed: dict[type, tuple[Any, Sequence[Removable]]] = {}

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self._model.get_submodule(self._path)

    @property
    def block(self) -> nn.Module | None:
        """The numbered layer around it, `model.layers.5` of `model.layers.5.mlp.down_proj`; None if there is none."""
        parts = self._path.split(".")
        ends = [i for i, part in enumerate(parts) if part.isdigit()]
        return self._model.get_submodule(".".join(parts[: ends[-1] + 1])) if ends else None

    def backup(self, parameter: Callable[[nn.Module], Tensor]) -> ParameterBackup:
        """What writes into a parameter of the module, and takes it back.

        Args:
            parameter: Module -> its parameter, e.g. `kedit.model.architecture.weight`. The same function names the
                same parameter.
        """
        return self._backups[parameter]

    def installed(self, kind: type[T]) -> T | None:
        """The change of a kind whose hooks are there."""
        return self._installed[kind][0] if kind in self._installed else None

    def install(self, change: object, hooks: Callable[[], Sequence[Removable]]) -> None:
        """Removes the hooks of earlier changes of this kind, and installs those of `change`."""
        for handle in self._installed.pop(type(change), (None, ()))[1]:
            handle.remove()
        self._installed[type(change)] = (change, hooks())

    def restore(self) -> None:
        """Puts back every bit that was there before the first change."""
        for parameter, backup in self._backups.items():
            backup.restore(parameter(self.module))
        for _, handles in self._installed.values():
            for handle in handles:
                handle.remove()
        self._backups.clear()
        self._installed.clear()
