"""Deltas in a model: written into it, and taken back bit for bit.

What is written into weights is added in float32 and rounded once; what must be put back is a snapshot of what is
touched, taken when it is touched (`kedit.delta.master_weights`). How each kind of change is written is the kind's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from kedit.delta.delta import Delta
from kedit.delta.gate_state import GateHistory
from kedit.delta.open_blocks import enter, leave
from kedit.delta.place import Place
from kedit.errors import KeditError

_WRITERS: WeakKeyDictionary[nn.Module, WeakSet[Weights]] = WeakKeyDictionary()


def carries_delta(model: nn.Module) -> bool:
    """Whether a delta lies in the model now, also one that changes no weight (GRACE's codebook)."""
    return any(writer.holds for writer in _WRITERS.get(model, ()))


class Weights:
    """Writes deltas into a model and puts the original weights back bit for bit.

    Changes of what a module reads are put before it as hooks, and taken away again.

    The first write keeps what it overwrites: a copy of the matrix, or of the touched rows or columns alone.
    Half-precision weights get a float32 master of the same extent, so that in the sequential regime changes far
    below their resolution add up instead of rounding away.

    Args:
        model: The model whose weights are written, in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._places: dict[str, Place] = {}
        self._history = GateHistory(model)
        self._following: list[RemovableHandle] = []
        _WRITERS.setdefault(model, WeakSet()).add(self)

    @property
    def holds(self) -> bool:
        """Whether it has written something that is not put back yet."""
        return bool(self._places)

    @torch.no_grad()
    def add(self, delta: Delta) -> None:
        """Write `delta` on top of what was written before.

        Raises:
            KeditError: The delta does not fit the model, or holds a value that is not finite; in both
                cases nothing is written.
        """
        delta.modules(self.model)
        for path, numbers in delta.numbers():
            if not torch.isfinite(numbers).all():
                raise KeditError(f"the delta of {path!r} holds values that are not finite; nothing was written")
        for path, changes in delta.items():
            place = self._places.setdefault(path, Place(self.model, path, self._follow))
            for change in changes:
                change.write(place)

    @torch.no_grad()
    def restore(self) -> None:
        """Put every touched weight and bias back to the bits it had before the first write."""
        for place in self._places.values():
            place.restore()
        for handle in self._following:
            handle.remove()
        self._places.clear()
        self._following.clear()

    def _follow(self) -> GateHistory:
        if not self._following:
            self._following = self._history.install()
        return self._history


class _Edited:
    """Deltas that an `edited` block writes."""

    def __init__(self, model: nn.Module, deltas: Sequence[Delta]) -> None:
        self._weights, self._deltas = Weights(model), deltas
        self.restore = self._weights.restore

    def write(self) -> None:
        for delta in self._deltas:
            self._weights.add(delta)


def written(model: nn.Module, *deltas: Delta) -> Callable[[], None]:
    """Writes deltas into a model, as `edited` does, until what is returned is called.

    Args:
        model: The model to edit, in place.
        deltas: What to write, in order.

    Returns:
        What puts the old weights back, bit for bit; once more does nothing. Of several it may be called in any order.

    Raises:
        KeditError: A delta does not fit the model; another thread has a block open on it.
    """
    block = _Edited(model, deltas)
    with ExitStack() as stack:
        stack.callback(leave, model, block)
        enter(model, block)
        return stack.pop_all().close


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
