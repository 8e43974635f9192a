"""The changes of weights in a delta, apart from all else that it may hold (biases, pathways)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add

from kedit.delta.change import Change, WeightChange
from kedit.delta.delta import Delta
from kedit.delta.dense import Dense


def weights_in(own: Sequence[Change]) -> list[WeightChange]:
    """Those of a module's changes that are changes of its weight."""
    return [change for change in own if isinstance(change, WeightChange)]


def changes_weights(delta: Delta) -> bool:
    """Whether any of its changes is one of a weight."""
    return any(weights_in(own) for _, own in delta.items())


def each_matrix(delta: Delta, restrained: Callable[[str, WeightChange], WeightChange]) -> Delta:
    """A delta with another change of every matrix.

    Args:
        delta: May change a matrix in several ways at once (factors and slices); these are added up first.
        restrained: From a module's path and the change of its weight to what takes its place. What it gives back
            itself, and what is not finite, stays bit for bit what it was.

    Returns:
        The new one; changes that are no changes of a weight are as they were.
    """
    changed: list[dict[str, Change]] = []
    for path, own in delta.items():
        weights = weights_in(own)
        changed += [{path: change} for change in own if not isinstance(change, WeightChange)]
        if not weights:
            continue
        whole = weights[0] if len(weights) == 1 else Dense(reduce(add, [change.dense() for change in weights]))
        finite = all(bool(numbers.isfinite().all()) for change in weights for numbers in change.numbers())
        found = restrained(path, whole) if finite else whole
        changed += [dict[str, Change]({path: one}) for one in (weights if found is whole else [found])]
    return Delta(*changed)
