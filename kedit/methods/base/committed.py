"""What a sequential run has committed: the deltas in the model, and what is known of every record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from kedit.delta.apply import Weights
from kedit.delta.delta import Delta
from kedit.delta.serialization import pack, unpack
from kedit.methods.base.edit_batch import EditBatch
from kedit.model.lm import LM
from kedit.runtime import distributed
from kedit.runtime.journal import Entry

Outcomes = list[tuple[dict[str, Any], str | None]]


class AppliedEdits:
    """Edits that accumulate in a model.

    Args:
        merged: Keep the sum of the deltas instead of each: this makes it, from the sum so far and one more. None:
            keep each.

    Attributes:
        deltas: The delta of every committed batch, in order, or their sum.
        total: What `finish` made of them all, once it has.
        outcomes: Figures and error of every record edited so far.
    """

    def __init__(self, merged: Callable[[Delta, Delta], Delta] | None) -> None:
        self._merged = merged
        self.deltas: list[Delta] = []
        self.total: Delta | None = None
        self.outcomes: Outcomes = []
        self._weights: Weights | None = None

    def begin(self, lm: LM, entries: Iterable[Entry], device: torch.device) -> None:
        """Starts on the unedited model; what a run committed before it was interrupted, with the same arithmetic.

        Args:
            lm: The model.
            entries: What `as_entry` gave.
            device: Where the deltas live.
        """
        self._weights = Weights(lm.model)
        for entry in entries:
            self.outcomes += [(info, error) for info, error in entry["outcomes"]]
            for packed in entry["deltas"]:
                self._keep(unpack(packed).to(device))
        for delta in self.deltas:
            self._weights.add(delta)

    def add(self, batch: EditBatch) -> None:
        """Writes an edit batch's deltas into the model and keeps them and its outcomes."""
        assert self._weights is not None
        for delta in batch.deltas:
            if delta is None:
                continue
            if self._merged is not None and self.deltas:
                self._weights.restore()  # a resumed run knows the sum alone: this one has the same weights to the bit
                self._keep(delta)
                self._weights.add(self.deltas[0])
            else:
                self._weights.add(delta)
                self._keep(delta)
        self.outcomes += outcomes_of(batch)

    def finish(self, change: Callable[[Delta], Delta | None], device: torch.device) -> None:
        """Puts another change into the model in place of the sum of all, once; `deltas` stay what they are.

        Checkpoints hold `deltas`, so that a run that is resumed never changes what was changed before. All processes
        go on with what the first one finds.

        Args:
            change: From that sum to what takes its place; None leaves the model as it is.
            device: Where the deltas live.
        """
        if self._weights is None or self.total is not None or not self.deltas:
            return
        found = change(Delta.concat(self.deltas))
        if distributed.world_size() > 1:
            packed = distributed.from_first(lambda: None if found is None else pack(found))
            found = None if packed is None else unpack(packed).to(device)
        if found is not None:
            self._weights.restore()
            self._weights.add(found)
            self.total = found

    def take_back(self) -> None:
        """Puts the unedited weights back; what is kept of the edits stays."""
        if self._weights is not None:
            self._weights.restore()

    def _keep(self, delta: Delta) -> None:
        """Keeps a delta, by itself or in the sum of all."""
        if self._merged is not None and self.deltas:
            delta = self._merged(self.deltas[0], delta)
            self.deltas.clear()
        self.deltas.append(delta)


def of_first_process(deltas: list[Delta | None], device: torch.device) -> list[Delta | None]:
    """The first process's deltas, in all processes; to be called by all of them."""
    if distributed.world_size() == 1:
        return deltas
    packed = distributed.from_first(lambda: [None if delta is None else pack(delta) for delta in deltas])
    if distributed.is_main():
        return deltas
    return [None if delta is None else unpack(delta).to(device) for delta in packed]


def outcomes_of(batch: EditBatch) -> Outcomes:
    """Figures and error of each of its records."""
    return [(outcome.info, outcome.error) for outcome in batch.outcomes]


def as_entry(deltas: Sequence[Delta | None], outcomes: Outcomes, state: dict[str, Any]) -> Entry:
    """What a checkpoint or its journal holds of edits.

    Args:
        deltas: None where an edit failed.
        outcomes: Of their records.
        state: What they have added to the method's state.
    """
    return {"deltas": [pack(delta) for delta in deltas if delta is not None], "outcomes": outcomes, "state": state}
