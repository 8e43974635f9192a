"""`PastKeys`: what a method remembers of the edits that came before, where edits accumulate (AlphaEdit, MEMIT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kedit.keyvalue.growing_inverse import GrowingInverse, Metric


class PastKeys:
    """Keys that earlier edit batches were solved with, by layer, in the order of the edits.

    They are kept on the CPU in float32: a key is a mean of activations that are no more exact than that. A method that
    solves with `gains` has them taken up batch by batch, before the next solve. Once they are as many as they are
    wide, a dense sum stands for them, and they themselves are dropped (baselines 1.17c).
    """

    def __init__(self) -> None:
        self._batches: list[tuple[str, ...]] = []  # case ids
        self._number: dict[str, int] = {}  # case -> its batch
        self._layers: dict[int, _Layer] = {}

    def remember(self, cases: Sequence[str], keys: Mapping[int, Tensor]) -> None:
        """Adds the keys of an edit batch.

        Args:
            cases: Case ids of its edits.
            keys: Layer -> `[n, d_in]`, a row for each of `cases`.
        """
        if not cases:
            return
        for layer, of_layer in keys.items():
            if len(of_layer) != len(cases):
                raise ValueError(f"{len(of_layer)} keys for {len(cases)} edits")
            held = self._layers.setdefault(layer, _Layer()).held
            held[len(self._batches)] = of_layer.to("cpu", torch.float32, copy=True)
        self._number |= dict.fromkeys(cases, len(self._batches))
        self._batches.append(tuple(cases))

    def of(self, layer: int, like: Tensor) -> Tensor:
        """All keys of a layer, `[m, d_in]`, in the dtype and on the device of `like: [n, d_in]`; m may be 0.

        They are all there where `gains` is not used, or is given fewer than d_in of them.
        """
        held = self._layers[layer].held if layer in self._layers else {}
        return torch.cat(list(held.values())).to(like) if held else like[:0]

    def gains(self, layer: int, keys: Tensor, metric: Metric) -> Tensor:
        """X = (A + Kp Kp^T + K K^T)^-1 K, Kp the keys so far (`GrowingInverse.gains`).

        Args:
            layer: The layer.
            keys: Those of the new batch, `[n, d_in]`, float64.
            metric: A; the same in every call for this layer.

        Raises:
            KeditError: A is so small beside the keys that rounding leaves no inverse.
        """
        return self._layers.get(layer, _Layer()).taken_up(keys, metric).gains(keys, metric)

    def is_dense(self, layer: int) -> bool:
        """Whether a dense sum stands for the keys of a layer."""
        inverse = self._layers[layer].inverse if layer in self._layers else None
        return inverse is not None and inverse.dense is not None

    def state(self, cases: Sequence[str]) -> dict[str, Any]:
        """What `load` needs of the edits `cases`: for `EditingModule.edit_state`.

        It is the keys of the last batch, or of all. Where these have been dropped, it is the dense sums of all.
        """
        numbers = sorted({self._number[case] for case in cases if case in self._number})
        names = [self._batches[number] for number in numbers]
        dense = {}
        if any(number not in layer.held for number in numbers for layer in self._layers.values()):
            if len(numbers) < len(self._batches):
                raise RuntimeError("keys of single edit batches are dropped when a dense sum stands for them")
            dense = {i: layer.state() for i, layer in self._layers.items() if self.is_dense(i)}
        held = [{i: layer.held[n] for i, layer in self._layers.items() if n in layer.held} for n in numbers]
        return {"past_keys": {"cases": names, "keys": held, "dense": dense}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` gave, in the order of the edits."""
        past = state["past_keys"]
        for cases, keys in zip(past["cases"], past["keys"], strict=True):
            self.remember(cases, keys)
        for layer, dense in past["dense"].items():
            self._layers.setdefault(layer, _Layer()).load(dense)


class _Layer:
    """The keys of one layer.

    Attributes:
        held: Number of a batch -> its keys: all of them, or, once the inverse is dense, what is not taken up yet.
        inverse: What was made of those that are taken up; None before the first solve.
    """

    def __init__(self) -> None:
        self.held: dict[int, Tensor] = {}
        self.inverse: GrowingInverse | None = None
        self._taken = -1  # number of the last batch that is taken up

    def taken_up(self, like: Tensor, metric: Metric) -> GrowingInverse:
        """The inverse that knows all keys, on the device of `like: [n, d_in]`."""
        if self.inverse is None:
            self.inverse = GrowingInverse(like.shape[1])
        self.inverse.to(like.device)
        for number in sorted(number for number in self.held if number > self._taken):
            self.inverse.add(self.held[number].to(like.device, torch.float64), metric)
            self._taken = number
        if self.inverse.dense is not None:
            self.held.clear()
        return self.inverse

    def state(self) -> dict[str, Any]:
        """The dense sum and its inverse, and which batches are in them."""
        assert self.inverse is not None
        kept = {"total": self.inverse.total, "inverse": self.inverse.dense}
        return kept | {"count": self.inverse.count, "taken": self._taken}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.inverse = GrowingInverse(len(state["total"]))
        self.inverse.restore(state["count"], state["total"], state["inverse"])
        self._taken = state["taken"]
