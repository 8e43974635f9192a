"""`PastKeys`: what a method remembers of the edits that came before, where edits accumulate (AlphaEdit, MEMIT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class PastKeys:
    """Keys that earlier edit batches were solved with, by layer, in the order of the edits.

    They are kept on the CPU in float32: a key is a mean of activations that are no more exact than that.
    """

    def __init__(self) -> None:
        self._keys: dict[int, dict[str, Tensor]] = {}  # layer -> case -> [d_in]

    def remember(self, cases: Sequence[str], keys: Mapping[int, Tensor]) -> None:
        """Adds the keys of an edit batch.

        Args:
            cases: Case ids of its edits.
            keys: Layer -> `[n, d_in]`, a row for each of `cases`.
        """
        for layer, of_layer in keys.items():
            rows = of_layer.to("cpu", torch.float32, copy=True)
            self._keys.setdefault(layer, {}).update(zip(cases, rows, strict=True))

    def of(self, layer: int, like: Tensor) -> Tensor:
        """All keys of a layer, `[m, d_in]`, in the dtype and on the device of `like: [n, d_in]`; m may be 0."""
        rows = self._keys.get(layer)
        return like[:0] if not rows else torch.stack(list(rows.values())).to(like)

    def state(self, cases: Sequence[str]) -> dict[str, Any]:
        """What `load` needs of the edits `cases`: for `EditingModule.edit_state`."""
        return {"past_keys": {layer: {c: rows[c] for c in cases if c in rows} for layer, rows in self._keys.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` gave, in the order of the edits."""
        for layer, rows in state["past_keys"].items():
            self._keys.setdefault(layer, {}).update(rows)
