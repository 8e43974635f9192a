"""`BiasChange`: a change of one linear map's bias, as PAC makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kedit.delta.change import Change, LaneStack, OutputPart
from kedit.delta.place import Place
from kedit.errors import KeditError
from kedit.model.architecture import weight


@dataclass(frozen=True)
class BiasChange(Change):
    """`b' = b + change`.

    Attributes:
        change: `[d_out]`, float32.

    Raises:
        ValueError: It is no vector.
    """

    change: Tensor

    kind: ClassVar[str] = "biases"
    in_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.change.ndim != 1:
            raise ValueError(f"the change of a bias is {tuple(self.change.shape)}, not [d_out]")

    def to(self, device: torch.device | str) -> BiasChange:
        """The same change on `device`."""
        return BiasChange(self.change.to(device))

    def check(self, path: str, module: nn.Module) -> None:
        """There must be a bias, of this length."""
        shape, b = tuple(self.change.shape), bias(module)
        if b is None or tuple(b.shape) != shape:
            here = "there is none" if b is None else f"it is {tuple(b.shape)}"
            raise KeditError(
                f"this delta changes the bias of {path!r} of shape {shape}, here {here}: it is of another model"
            )

    def write(self, place: Place) -> None:
        """Adds the change to the bias."""
        b = bias(place.module)
        place.backup(bias).add(b, self.change.to(b.device))

    def parameters(self) -> Mapping[str, Tensor]:
        """The bias."""
        return {"bias": self.change}

    def extent(self) -> str:
        """That it is the bias."""
        return "bias"

    def square_norm(self) -> float:
        """Sum of all squares."""
        return float(self.change.double().square().sum())

    @classmethod
    def add(cls, parts: Sequence[BiasChange]) -> BiasChange:
        """The sum, in the order given."""
        return BiasChange(reduce(add, [part.change for part in parts]))

    def tensors(self) -> dict[str, Tensor]:
        """`bias`."""
        return {"bias": self.change}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> BiasChange | None:
        """From `bias`."""
        return BiasChange(tensors["bias"]) if "bias" in tensors else None

    def pack(self) -> Any:
        """The tensor."""
        return self.change

    @classmethod
    def unpack(cls, packed: Any) -> BiasChange:
        """From the tensor."""
        return BiasChange(packed)

    @classmethod
    def stack(cls, parts: Mapping[int, BiasChange], n_lanes: int) -> Sequence[LaneStack]:
        """One stack."""
        return [_BiasStack(parts, n_lanes)]


def bias(module: nn.Module) -> Any:
    """b of a linear map `v = W k + b`; None where there is none."""
    weight(module)  # refuses what is no linear map
    return module.bias


class _BiasStack(LaneStack):
    """`y += b_b`."""

    def __init__(self, parts: Mapping[int, BiasChange], n: int) -> None:
        none = BiasChange(torch.zeros_like(next(iter(parts.values())).change))
        self.biases = torch.stack([parts.get(i, none).change for i in range(n)])

    def after(self, lanes: Tensor, device: torch.device) -> OutputPart:
        biases = self.biases[lanes.to(self.biases.device)].to(device)[:, None]  # [batch, 1, d_out]

        def part(x: Tensor, y: Tensor) -> Tensor:
            return y + biases

        return part
