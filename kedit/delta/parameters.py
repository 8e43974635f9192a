"""`ParameterChange`: a change of any parameters of one module: embeddings, norms, biases, matrices (Full-C).

It is written in place and taken back bit for bit. It does not run in lanes: a parameter that several modules share, as
a tied head does, has one value for all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kedit.delta.biases import bias
from kedit.delta.change import Change, WeightChange
from kedit.delta.place import Place
from kedit.errors import KeditError
from kedit.model.architecture import weight

_PREFIX = "parameters."


@dataclass(frozen=True)
class ParameterChange(Change):
    """`p' = p + change` for some parameters of a module.

    Attributes:
        changes: Name of the parameter in the module -> `[...]` of its shape, float32; the weight of a linear map is
            `[d_out, d_in]` whatever its storage. A parameter of several modules is changed at one of them.

    Raises:
        ValueError: There is none, or one is not float32.
    """

    changes: Mapping[str, Tensor]

    kind: ClassVar[str] = "parameters"
    fits_lanes: ClassVar[bool] = False
    in_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.changes or any(change.dtype != torch.float32 for change in self.changes.values()):
            raise ValueError("a change of parameters holds none, or one that is not float32")

    def to(self, device: torch.device | str) -> ParameterChange:
        """The same change on `device`."""
        return ParameterChange({name: change.to(device) for name, change in self.changes.items()})

    def check(self, path: str, module: nn.Module) -> None:
        """The module must have these parameters in these shapes."""
        for name, change in self.changes.items():
            found = None if module._parameters.get(name) is None else tuple(parameter(module, name)(module).shape)
            if found != tuple(change.shape):
                here = "there is none" if found is None else f"it is {found}"
                raise KeditError(
                    f"this delta changes {name!r} of {path!r} of shape {tuple(change.shape)}, here {here}: "
                    "it is of another model"
                )

    def write(self, place: Place) -> None:
        """Adds each change to its parameter."""
        for name, change in self.changes.items():
            of = parameter(place.module, name)
            p = of(place.module)
            place.backup(of).add(p, change.to(p.device))

    def parameters(self) -> Mapping[str, Tensor]:
        """All of them."""
        return self.changes

    def extent(self) -> str:
        """Their names."""
        return ", ".join(self.changes)

    def square_norm(self) -> float:
        """Sum of all squares."""
        return sum(float(change.double().square().sum()) for change in self.changes.values())

    def inner(self, earlier: Change) -> float:
        """With a change of the weight, or of the bias, entry by entry."""
        if isinstance(earlier, WeightChange) and "weight" in self.changes:
            return float((self.changes["weight"].double() * earlier.dense().double()).sum())
        if (own := self.changes.get("bias")) is not None and (other := earlier.tensors().get("bias")) is not None:
            return float((own.double() * other.double()).sum())
        return 0.0

    @classmethod
    def add(cls, parts: Sequence[ParameterChange]) -> ParameterChange:
        """The sums, in the order given."""
        total: dict[str, Tensor] = {}
        for part in parts:
            for name, change in part.changes.items():
                total[name] = total[name] + change if name in total else change
        return ParameterChange(total)

    def tensors(self) -> dict[str, Tensor]:
        """`parameters.NAME`."""
        return {_PREFIX + name: change for name, change in self.changes.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> ParameterChange | None:
        """From `parameters.NAME`."""
        own = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
        return ParameterChange(own) if own else None


def parameter(module: nn.Module, name: str) -> Callable[[nn.Module], Tensor]:
    """What gives a parameter of a module, `[d_out, d_in]` where it is the weight of a linear map.

    It is the function by which the other kinds of changes name the same parameter, so that all share its backup.
    """
    if isinstance(module, (nn.Linear, Conv1D)) and name in ("weight", "bias"):
        return weight if name == "weight" else bias
    return _Stored(name)


@dataclass(frozen=True)
class _Stored:
    """A parameter as it is stored; two of the same name are equal."""

    name: str

    def __call__(self, module: nn.Module) -> Tensor:
        return getattr(module, self.name)
