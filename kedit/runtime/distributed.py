"""The processes of a run: which of them this is, and what they tell each other.

Every process holds the whole model and does a share of the edits. Without `torch.distributed` there is one, and all
functions say what is true of it. Those that exchange something must be called by every process, in the same order.
Tensors travel on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed

from kedit.errors import KeditError

T = TypeVar("T")


def world_size() -> int:
    """How many processes the run has."""
    return distributed.get_world_size() if _several() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return distributed.get_rank() if _several() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return rank() == 0


def share(work: Sequence[T]) -> list[T]:
    """This process's part of some work: every `world_size()`-th piece, so that neighbours are done in one round."""
    return list(work[rank() :: world_size()])


def gather(value: T) -> list[T]:
    """What each process gives, by rank; each gets all."""
    if not _several():
        return [value]
    found: list[Any] = [None] * world_size()
    distributed.all_gather_object(found, value)
    return found


def gather_shares(values: Sequence[T]) -> list[T]:
    """What every process made of its `share`, in the order of the work."""
    parts = gather(list(values))
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes; the others wait for it.

    Raises:
        KeditError: In every process, where it cannot be made.
    """
    if not _several():
        return make()
    told: list[Any] = [None, None]
    if is_main():
        try:
            told[0] = make()
        except KeditError as error:
            told[1] = str(error)
    distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise KeditError(told[1])
    return told[0]


def all_true(yes: bool) -> bool:
    """Whether every process says yes."""
    if not _several():
        return yes
    votes = torch.tensor([int(yes)])
    distributed.all_reduce(votes, distributed.ReduceOp.MIN)
    return bool(votes.item())


def total(value: torch.Tensor) -> torch.Tensor:
    """Sum over the processes, on the device of `value`; `value` itself may be overwritten."""
    if not _several():
        return value
    moved = value.cpu()
    distributed.all_reduce(moved)
    return moved.to(value.device)


def leave() -> None:
    """Ends this process's part in the group, where there is one."""
    if _connected():
        distributed.destroy_process_group()


def _several() -> bool:
    return _connected() and distributed.get_world_size() > 1


def _connected() -> bool:
    return distributed.is_available() and distributed.is_initialized()
