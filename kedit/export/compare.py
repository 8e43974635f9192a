"""What two deltas have in common: bits, modules, directions and requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kedit.delta.change import Change, WeightChange
from kedit.delta.delta import Delta
from kedit.export.requests import ABOUT, requests_of, settings_of


@dataclass(frozen=True)
class ModuleDifference:
    """One module that at least one of two deltas changes.

    Attributes:
        path: The module.
        norms: Frobenius norm of the change in each; None where it has none.
        cosine: Of the angle between the two changes of its parameters: 1 in the same direction, 0 nothing in common;
            None where there are not two.
        equal: Bit for bit.
    """

    path: str
    norms: tuple[float | None, float | None]
    cosine: float | None
    equal: bool


@dataclass(frozen=True)
class RequestDifference:
    """A prompt that only one delta edits, or to which they give different targets.

    Attributes:
        prompt: With its subject.
        targets: New target in each; None where it is not edited.
    """

    prompt: str
    targets: tuple[str | None, str | None]


def equal(one: Delta, other: Delta) -> bool:
    """Whether the two are the same, bit for bit."""
    return set(one.paths) == set(other.paths) and all(m.equal for m in modules(one, other))


def modules(one: Delta, other: Delta) -> list[ModuleDifference]:
    """Every module that either changes, in order."""
    mine, its = dict(one.items()), dict(other.items())
    found = []
    for path in dict.fromkeys([*one.paths, *other.paths]):
        a, b = mine.get(path, ()), its.get(path, ())
        norms = tuple(_norm(changes) if changes else None for changes in (a, b))
        cosine = None
        if norms[0] and norms[1]:
            cosine = max(-1.0, min(1.0, _product(a, b) / (norms[0] * norms[1])))
        found.append(ModuleDifference(path, (norms[0], norms[1]), cosine, _same(a, b)))
    return found


def requests(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[RequestDifference]:
    """What the cards of two deltas differ in, prompt by prompt."""
    a, b = ({request.text: request.target_new for request in requests_of(card)} for card in (one, other))
    texts = dict.fromkeys([*a, *b])
    return [RequestDifference(text, (a.get(text), b.get(text))) for text in texts if a.get(text) != b.get(text)]


def settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options, model, method, regime and seed in which the two differ."""
    keys = dict.fromkeys([*sorted(ABOUT), *settings_of(one), *settings_of(other)])
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _same(a: Sequence[Change], b: Sequence[Change]) -> bool:
    if [type(change) for change in a] != [type(change) for change in b]:
        return False
    return all(_same_tensors(x.tensors(), y.tensors()) for x, y in zip(a, b, strict=True))


def _same_tensors(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[key].shape == b[key].shape and torch.equal(a[key], b[key]) for key in a)


def _norm(changes: Sequence[Change]) -> float:
    adding = [change for change in changes if change.in_weights]
    if not adding:  # its own measure: the size of what it stores, where it has one
        return sum(change.square_norm() for change in changes) ** 0.5
    return max(0.0, _product(adding, adding)) ** 0.5


def _product(a: Sequence[Change], b: Sequence[Change]) -> float:
    """Sum over all parameters of both, in float64; 0 for kinds that add to none."""
    return sum(_inner(x, y) for x in a for y in b if x.in_weights and y.in_weights)


def _inner(a: Change, b: Change) -> float:
    if isinstance(a, WeightChange) and isinstance(b, WeightChange):
        if a.shape != b.shape:
            return 0.0
        one, other = a.factored(), b.factored()
        if one is not None and other is not None:
            (left, right), (down, up) = ([t.double() for t in pair] for pair in (one, other))
            return float(((left.T @ down) * (right @ up.T)).sum())
    mine, its = a.parameters(), b.parameters()
    names = [name for name in mine if name in its and mine[name].shape == its[name].shape]
    return sum(float((mine[name].double() * its[name].double()).sum()) for name in names)
