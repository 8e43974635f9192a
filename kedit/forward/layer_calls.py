"""How a model calls its layers: recorded without running them, and which of their arguments go by rows.

Which axis of an argument counts the rows is found by trying: the same call is recorded with one row more, and what
grew is the axis. Comparing sizes with the number of rows would take 12 heads for 12 rows. No family is named here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache

from kedit.errors import KeditError

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


@dataclass
class Calls:
    """What a model gives to its layers.

    Attributes:
        inputs: The residual stream at each layer, `[n_rows, T, d_model]`; no layer has changed it.
        args: Each layer's other positional arguments.
        kwargs: Each layer's keyword arguments.
        norm_inputs: What the final norm was given; some models call it before the layers too, so the last one counts.
    """

    inputs: list[Tensor] = field(default_factory=list)
    args: list[tuple[Any, ...]] = field(default_factory=list)
    kwargs: list[dict[str, Any]] = field(default_factory=list)
    norm_inputs: list[Tensor] = field(default_factory=list)


@contextmanager
def recorded(layers: Sequence[nn.Module], norm: nn.Module, in_tuple: bool) -> Iterator[Calls]:
    """Inside, `layers` pass their input on instead of running, and what they are given is recorded.

    Args:
        layers: The layers.
        norm: The model's final norm.
        in_tuple: Whether this model's layers return their output in a tuple.
    """
    calls = Calls()

    def pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.inputs.append(hidden_states)
        calls.args.append(args)
        calls.kwargs.append(kwargs)
        return (hidden_states,) if in_tuple else hidden_states

    handle = norm.register_forward_pre_hook(lambda _, args: calls.norm_inputs.append(args[0]))
    own = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = pass_through
        yield calls
    finally:
        handle.remove()
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


class RowAxis(NamedTuple):
    """The axis of a tensor that counts the rows, and how many entries there are of each, one after another."""

    dim: int
    block: int

    def take(self, tensor: Tensor, index: Tensor) -> Tensor:
        """The rows `index: [m]` of `tensor`."""
        if self.block == 1:
            return tensor.index_select(self.dim, index)
        rows = tensor.unflatten(self.dim, (-1, self.block)).index_select(self.dim, index)
        return rows.flatten(self.dim, self.dim + 1)


def row_axes(one: Any, more: Any, n_rows: int) -> list[tuple[Tensor, RowAxis]]:
    """The tensors among a call's arguments that go by rows.

    Args:
        one: Arguments recorded with `n_rows` rows: tensors and plain values in tuples, lists and
            dictionaries.
        more: The same call's with `n_rows + 1` rows.
        n_rows: The number of rows.

    Returns:
        Those tensors of `one`, and the axis of each. All others are the same for every row.

    Raises:
        KeditError: An argument changes in another way with the number of rows.
    """
    found: dict[int, tuple[Tensor, RowAxis]] = {}
    for a, b in _pairs(one, more):
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim == b.ndim:
            grown = [dim for dim, sizes in enumerate(zip(a.shape, b.shape, strict=True)) if sizes[0] != sizes[1]]
            if not grown:
                continue
            block, rest = divmod(a.shape[grown[0]], n_rows)
            if len(grown) > 1 or rest or b.shape[grown[0]] != block * (n_rows + 1):
                raise KeditError(f"an argument of its layers grows from {tuple(a.shape)} to {tuple(b.shape)}")
            found[id(a)] = (a, RowAxis(grown[0], block))
        elif not (a is b or isinstance(a, Cache) or (isinstance(a, _PLAIN) and type(a) is type(b) and a == b)):
            raise KeditError(f"an argument of its layers, a {type(a).__name__}, changes with the number of rows")
    return list(found.values())


def exchanged(tree: Any, swap: Mapping[int, Any]) -> Any:
    """`tree` with every object whose id is in `swap` exchanged; what is shared stays shared."""
    if id(tree) in swap:
        return swap[id(tree)]
    if type(tree) in (tuple, list):
        return type(tree)(exchanged(x, swap) for x in tree)
    if type(tree) is dict:
        return {key: exchanged(x, swap) for key, x in tree.items()}
    return tree


def _pairs(one: Any, more: Any) -> Iterator[tuple[Any, Any]]:
    """The leaves of two trees side by side; where their shapes differ, the subtrees."""
    if type(one) is type(more) is dict and one.keys() == more.keys():
        for key in one:
            yield from _pairs(one[key], more[key])
    elif type(one) in (tuple, list) and type(more) is type(one) and len(one) == len(more):
        for a, b in zip(one, more, strict=True):
            yield from _pairs(a, b)
    else:
        yield one, more
