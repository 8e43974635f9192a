"""What an epoch edits and what came of it: passed to every edit callback, and nothing of Lightning in it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kedit.delta.delta import Delta
from kedit.request import EditRecord


@dataclass
class Outcome:
    """What editing did for one record.

    Attributes:
        record: The record.
        error: Why this edit failed, in one line; None when it was made.
        info: Figures of the optimisation, JSON-able: loss, its terms, steps, norms.
    """

    record: EditRecord
    error: str | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def report(self, info: dict[str, Any], error: str | None) -> None:
        """What came of the edit: its figures, and why it failed where it did."""
        self.info, self.error = info, error

    def note(self, **info: Any) -> None:
        """Further figures."""
        self.info |= info

    def fail(self, why: str) -> None:
        """The edit was not made."""
        self.error = why


@dataclass
class EditBatch:
    """One epoch's work.

    Attributes:
        index: Number of the batch, from 0.
        records: The records it edits.
        outcomes: One per record, once the edit has ended.
        deltas: In the `single` regime one delta per record (None where it failed); otherwise one for the batch.
        baseline_deltas: What the editor alone would have changed, where the method adds to an editor (REP, STEAM).
        baseline_outcomes: One per record, where that was an optimisation of its own (STEAM); None: `outcomes` are its
            too.
        seconds: Wall-clock time of the edit and its commit, measuring not included.
        cpu_seconds: CPU time of this process in the same, all its threads; other processes are not in it.
        keys: In the sequential regime, where a method solves with keys: layer -> those of `edited`, `[n, d_in]`.
    """

    index: int
    records: list[EditRecord]
    outcomes: list[Outcome] = field(default_factory=list)
    deltas: list[Delta | None] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    baseline_deltas: list[Delta | None] | None = None
    baseline_outcomes: list[Outcome] | None = None
    keys: dict[int, Tensor] = field(default_factory=dict)

    @property
    def edited(self) -> list[EditRecord]:
        """The records whose edit was made."""
        return [outcome.record for outcome in self.outcomes if outcome.error is None]

    @classmethod
    def of(cls, index: int, records: list[EditRecord]) -> EditBatch:
        """A batch about to be edited: nothing has come of its records yet."""
        return cls(index, records, [Outcome(record) for record in records])

    def add_baseline(self, deltas: list[Delta | None], outcomes: list[Outcome] | None = None) -> None:
        """Puts what the editor alone would have changed beside the batch's own deltas."""
        self.baseline_deltas, self.baseline_outcomes = deltas, outcomes

    def begin(self) -> None:
        """The edit begins: its time is counted from here."""
        self.seconds, self.cpu_seconds = -time.perf_counter(), -time.process_time()

    def finish(self, deltas: list[Delta | None]) -> None:
        """Takes up what was changed."""
        self.deltas = deltas

    def end(self) -> None:
        """The edit is made, and committed where edits accumulate: no more time is counted."""
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()


def batch_seed(seed: int, index: int) -> int:
    """A seed of its own for every edit batch, the same however the run got there."""
    return (seed * 1_000_003 + index * 7_919 + 17) % 2**32
