"""`Change`: what one kind of edit does to one module of a model. A new kind is one file with a subclass.

The subclass says how it is written and taken back, how many of them run side by side in lanes, and which tensors a file
holds of it. `kedit.delta.kinds` lists the kinds that files are read with. No other module knows a kind by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from kedit.delta.gate_state import GateHistory
from kedit.delta.master_weights import as_rows
from kedit.delta.place import Place
from kedit.delta.shelf import Shelf
from kedit.errors import KeditError
from kedit.model.architecture import weight

InputHook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]
"""A forward pre-hook of torch: module and its positional arguments -> those that it is given instead."""

OutputPart = Callable[[Tensor, Tensor], Tensor]
"""Inputs x `[batch, T, d_in]` and outputs so far y `[batch, T, d_out]`, in float32 or float64 -> y."""


class LaneStack:
    """Changes of one kind at one module, one per lane: an own one overrides `before`, `after`, or both.

    Attributes:
        remembers: Whether the model's passes must be followed, so that `before` knows the texts of a cache.
    """

    remembers: bool = False

    shelves: Mapping[int, Shelf] = MappingProxyType({})
    """Lane -> what it puts before prompts, where this is such a kind (`kedit.delta.prompts`)."""

    def before(self, lanes: Tensor, history: GateHistory) -> InputHook | None:
        """What moves the module's inputs.

        Args:
            lanes: Lane of each row, `[batch]` int64; -1 is the unedited model.
            history: Follows the model where some stack `remembers`.
        """
        return None

    def after(self, lanes: Tensor, device: torch.device) -> OutputPart | None:
        """What is added to the module's outputs, which are on `device`; rows of lane -1 keep theirs bit for bit."""
        return None


class Change(ABC):
    """What changes at one module, in the mathematical orientation `[d_out, d_in]` whatever the module's storage.

    Attributes:
        kind: Its name in checkpoints. Names of its tensors should begin with it, as in `"slices.index"`.
        fits_lanes: Whether changes of this kind run side by side (`stack`); otherwise each is measured in the weights.
        in_weights: Whether it adds to parameters and does nothing else, so that an ordinary model folder can hold it.
    """

    kind: ClassVar[str]
    fits_lanes: ClassVar[bool] = True
    in_weights: ClassVar[bool] = False

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same change on `device`."""

    @abstractmethod
    def check(self, path: str, module: nn.Module) -> None:
        """Whether it fits.

        Args:
            path: The module's path in the model, for messages.
            module: What it would change.

        Raises:
            KeditError: The module is of another type or shape.
        """

    @abstractmethod
    def write(self, place: Place) -> None:
        """Puts the change into a model, on top of what is there, so that `place` can take it back."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that it is made of, by the names under which a file holds it."""

    @classmethod
    @abstractmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Self | None:
        """What `tensors` took apart.

        Args:
            tensors: What a file holds of one module, also of other kinds.

        Returns:
            None where none of them is of this kind.

        Raises:
            KeyError, TypeError, ValueError: Tensors are missing, or do not fit together.
        """

    @classmethod
    @abstractmethod
    def add(cls, parts: Sequence[Self]) -> Self:
        """One change that does what `parts` do, written in their order.

        Raises:
            ValueError: There is no such change.
        """

    def numbers(self) -> Iterable[Tensor]:
        """Its float32 tensors, none of which may hold NaN or infinity."""
        return self.tensors().values()

    def parameters(self) -> Mapping[str, Tensor]:
        """What it adds to the module's parameters, by name, float32; the weight of a linear map is `[d_out, d_in]`."""
        return {}

    def extent(self) -> str:
        """How much of the module it changes, in a few words, e.g. `"rank 3"`."""
        return ""

    def square_norm(self) -> float:
        """Square of the Frobenius norm of what it adds to weights, in float64."""
        return 0.0

    def inner(self, earlier: Change) -> float:
        """Inner product with another kind of change of the same module, as far as both add to one parameter."""
        return 0.0

    @classmethod
    def stack(cls, parts: Mapping[int, Self], n_lanes: int) -> Sequence[LaneStack]:
        """Changes of one module by lane, to be applied row by row.

        Args:
            parts: Lane -> its change; a lane may have none.
            n_lanes: Number of lanes; no part has the last one, which is the unedited model.

        Raises:
            KeditError: This kind cannot run in lanes.
        """
        raise KeditError(f"changes of kind {cls.kind!r} cannot run side by side in lanes: apply each with kedit.edited")

    def pack(self) -> Any:
        """What a checkpoint holds of it: tensors, numbers, and lists or dicts of them."""
        return self.tensors()

    @classmethod
    def unpack(cls, packed: Any) -> Self:
        """What `pack` made.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: It is something else.
        """
        found = cls.of_tensors(packed)
        if found is None:
            raise ValueError(f"no tensors of kind {cls.kind!r}")
        return found


class WeightChange(Change):
    """A matrix that is added to a module's weight.

    Attributes:
        shape: `(d_out, d_in)`.
    """

    in_weights: ClassVar[bool] = True

    shape: tuple[int, int]

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrix itself, `[d_out, d_in]`."""

    def factored(self) -> tuple[Tensor, Tensor] | None:
        """`[d_out, r]` and `[r, d_in]`, whose product it is; None where it is not made of few lines or directions."""
        return None

    def parameters(self) -> Mapping[str, Tensor]:
        """The matrix, as the weight."""
        return {"weight": self.dense()}

    def lines(self, axis: int, index: Tensor) -> Tensor:
        """Some rows (axis 0) `[n, d_in]` or columns (axis 1) `[n, d_out]` of the matrix, in float64."""
        return as_rows(self.dense().double(), axis)[index]

    def check(self, path: str, module: nn.Module) -> None:
        """The weight must have this shape."""
        found = tuple(weight(module).shape)
        if found != self.shape:
            raise KeditError(
                f"this delta changes {path!r} of shape {self.shape}, here it is {found}: it is of another model"
            )

    def write(self, place: Place) -> None:
        """Adds the matrix to the weight."""
        w = weight(place.module)
        place.backup(weight).add(w, self.to(w.device).dense())

    def square_norm(self) -> float:
        """Sum of all squares."""
        return float(self.dense().double().square().sum())

    def inner(self, earlier: Change) -> float:
        """Sum of products, entry by entry."""
        if not isinstance(earlier, WeightChange):
            return 0.0
        return float((self.dense().double() * earlier.dense().double()).sum())
