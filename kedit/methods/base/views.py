"""Where the edits of a batch can be measured: regime and arm decide it here, and nowhere else.

An arm is what the batch changed: the method's deltas, or those of the editor alone that the method adds to. In the
`single` regime every arm of every record is a lane, and the unedited model another, so all are measured in one go; what
cannot run in lanes (a change of every parameter) is written into the weights, one record after another. In `batch` an
arm is written into the weights while it is measured. In `sequential` the weights are edited already, and the
unedited model was measured before the first edit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeVar

from torch import nn

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.lanes import BatchedDeltas
from kedit.methods.base.edit_batch import EditBatch, Outcome

T = TypeVar("T")

BEFORE = "before"
"""Instead of a moment of measurement: the unedited model."""

Ask = tuple[str, str]
"""What to measure: `BEFORE` or a moment (`measured_at` of a row), and a record's case id."""

Run = Callable[[list[int], list[int] | None, BatchedDeltas | None, bool], Sequence[T]]
"""Measures the asks of the given numbers in one go: numbers, their lanes and the deltas that these index (None: the
weights as they are), and whether all processes measure the same. Returns one value per number."""


@dataclass(frozen=True)
class Arm:
    """One of the changes that an edit batch makes.

    Attributes:
        measured_at: `edit`: what the method did; `editor`: what the editor alone does that the method adds to.
        deltas: In the single regime one per record (None where it failed), otherwise one for the batch.
        outcomes: One per record.
    """

    measured_at: str
    deltas: list[Delta | None]
    outcomes: list[Outcome]


def arms_of(regime: str, batch: EditBatch) -> list[Arm]:
    """The arms of a batch, the method's first. Where edits accumulate it is the only one in the weights."""
    arms = [Arm("edit", batch.deltas, batch.outcomes)]
    if batch.baseline_deltas is not None and not accumulates(regime):
        arms.append(Arm("editor", batch.baseline_deltas, batch.baseline_outcomes or batch.outcomes))
    return arms


def accumulates(regime: str) -> bool:
    """Whether edits stay in the weights, so that the unedited model must be measured before the first one."""
    return regime == "sequential"


@dataclass(frozen=True)
class View:
    """A state of the model in which some asks are measured, in one go.

    Attributes:
        model: The model.
        moment: What it shows; None: whatever is asked for, but not `BEFORE`. Without meaning where there are lanes.
        written: Deltas that are in the weights inside `opened()`, besides those that are there anyway.
        lanes: Ask -> its lane, -1 for the unedited model; None where no lanes are used.
        bank: The deltas that the lanes index.
        only: The one ask that it shows; None where `moment` or `lanes` say.
    """

    model: nn.Module
    moment: str | None = None
    written: list[Delta] = field(default_factory=list)
    lanes: Mapping[Ask, int] | None = None
    bank: BatchedDeltas | None = None
    only: Ask | None = None

    def shows(self, ask: Ask) -> bool:
        """Whether an ask can be measured in it."""
        if self.only is not None:
            return ask == self.only
        if self.lanes is not None:
            return ask in self.lanes
        return ask[0] != BEFORE if self.moment is None else ask[0] == self.moment

    def opened(self) -> AbstractContextManager[Any]:
        """Inside, the model is in this state; afterwards its weights are the old ones, bit for bit."""
        return edited(self.model, *self.written) if self.written else nullcontext()


def views(regime: str, model: nn.Module, batch: EditBatch | None) -> Iterator[View]:
    """The states of the model in which a batch just edited is measured, in order.

    Args:
        regime: Of the run.
        model: With the weights that the regime leaves after the batch.
        batch: The batch; None for all edits so far, in the sequential regime.
    """
    if batch is None or accumulates(regime):
        yield View(model)
    elif regime == "batch":
        yield View(model, BEFORE)
        for arm in arms_of(regime, batch):
            yield View(model, arm.measured_at, [delta for delta in arm.deltas if delta is not None])
    else:
        arms, cases = arms_of(regime, batch), [record.request.case_id for record in batch.records]
        asks = product([arm.measured_at for arm in arms], cases)
        changed = dict(zip(asks, [delta or Delta() for arm in arms for delta in arm.deltas], strict=True))
        in_lanes = {ask: delta for ask, delta in changed.items() if delta.fits_lanes}
        lanes = {ask: lane for lane, ask in enumerate(in_lanes)} | {(BEFORE, case): -1 for case in cases}
        yield View(model, lanes=lanes, bank=BatchedDeltas(model, list(in_lanes.values())))
        for ask in [ask for ask in changed if ask not in in_lanes]:
            yield View(model, written=[changed[ask]], only=ask)


def measure(
    regime: str, model: nn.Module, batch: EditBatch | None, asks: Sequence[Ask], run: Run[T], base: Mapping[str, T]
) -> list[T]:
    """What `run` measures for every ask, in their order; asks of one view are measured together.

    Args:
        regime: Of the run.
        model: With the weights that the regime leaves after the batch.
        batch: The batch just edited; None for all edits so far, in the sequential regime.
        asks: What to measure; an ask may come twice.
        run: Measures some of them.
        base: What was measured of the unedited model before the first edit, by case id, where edits accumulate.
    """
    results = {i: base[case] for i, (moment, case) in enumerate(asks) if moment == BEFORE and case in base}
    for view in views(regime, model, batch):
        numbers = [i for i, ask in enumerate(asks) if i not in results and view.shows(ask)]
        if numbers:
            lanes = None if view.lanes is None else [view.lanes[asks[i]] for i in numbers]
            with view.opened():
                measured = run(numbers, lanes, view.bank, regime != "single")
            results |= zip(numbers, measured, strict=True)
    return [results[i] for i in range(len(asks))]
