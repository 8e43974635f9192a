"""What `kedit.edited` blocks of one model know of each other: kept on the model, as long as one is open.

Blocks that are left in another order than they were entered (two generators) still end with the right weights; blocks
of two threads at once are refused. A signal while weights are restored waits until they are.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Protocol

from torch import nn

from kedit.errors import KeditError

_OPEN = "_kedit_open_blocks"  # attribute of a model


class Block(Protocol):
    """One that is open."""

    def write(self) -> None:
        """Writes its deltas on top of what is there."""

    def restore(self) -> None:
        """Puts back every bit that it overwrote; may be called again."""


class _Open(list["tuple[int, Block]"]):
    """Blocks in the order in which they were entered, each with its thread. A copy of a model has none open."""

    def __deepcopy__(self, _: dict[int, Any]) -> _Open:
        return _Open()

    def __reduce__(self) -> tuple[Any, ...]:
        return (list, ())


def enter(model: nn.Module, block: Block) -> None:
    """Opens a block on top of those that are open, and writes it.

    Raises:
        KeditError: Another thread has one open.
    """
    mine = threading.get_ident()
    opened: _Open = model.__dict__.setdefault(_OPEN, _Open())
    opened.append((mine, block))  # first: of two threads, at least one sees the other
    if any(thread != mine for thread, _ in opened):
        _forget(model, block)
        raise KeditError(
            "this model is being edited by another thread: what one writes, the other would see. "
            "Give each thread a model of its own, or edit in turn"
        )
    surely([block.write])


def leave(model: nn.Module, block: Block) -> None:
    """Closes a block, wherever among the open ones it is: those above it are taken off and written again."""
    opened: _Open = model.__dict__.get(_OPEN, _Open())
    if all(own is not block for _, own in opened):
        return
    place = next(i for i, (_, own) in enumerate(opened) if own is block)
    above = [own for _, own in opened[place + 1 :]]
    steps = [own.restore for own in reversed(above)] + [block.restore] + [own.write for own in above]
    surely([*steps, lambda: _forget(model, block)])


def surely(steps: Iterable[Callable[[], None]]) -> None:
    """Does all steps; Ctrl-C and other signals that Python handles wait until they are done."""
    late: list[tuple[int, FrameType | None]] = []
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])):
                if callable(handler := signal.getsignal(number)):
                    before[number] = handler
                    signal.signal(number, lambda *what: late.append(what))
        for step in steps:
            step()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, frame in late:
        before[number](number, frame)


def _forget(model: nn.Module, block: Block) -> None:
    opened = model.__dict__.get(_OPEN, _Open())
    opened[:] = [pair for pair in opened if pair[1] is not block]
    if not opened:
        model.__dict__.pop(_OPEN, None)
