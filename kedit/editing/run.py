"""A quiet run of Lightning over requests at hand: no folder, no file, no bar but where it is asked for.

What takes long before the first edit (statistics, sampled texts) shows its own progress.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng

from kedit.data.datamodule import EditData
from kedit.data.robust_queries import QueryConfig
from kedit.delta.delta import Delta
from kedit.editing.held import interruptible
from kedit.methods import EditingModule
from kedit.methods.base.callback import EditCallback, schedule_of
from kedit.methods.base.edit_batch import EditBatch, Outcome
from kedit.methods.base.trainer_options import TRAINER_DEFAULTS
from kedit.methods.base.views import accumulates
from kedit.model.lm import LM
from kedit.request import EditRecord
from kedit.runtime.progress import Report, stages
from kedit.runtime.quiet_lightning import quiet_lightning


class GivenRequests(EditData):
    """Records at hand."""

    source = "given"

    def __init__(
        self, records: Sequence[EditRecord], batch_size: int = 1, queries: QueryConfig | None = None, **more: Any
    ) -> None:
        super().__init__(batch_size=batch_size, queries=queries, **more)
        self.given = list(records)
        self.name = "requests"

    def read(self) -> list[EditRecord]:
        """The records."""
        return self.given


@dataclass(frozen=True)
class Made:
    """What came of a run.

    Attributes:
        delta: What all edits change; None where every one failed.
        outcomes: One per record, in their order.
        unfit: Records that do not fit into the model's context: case id and why.
        seconds: Wall-clock time of the edits.
        about: What the method says of itself and the model (`describe`).
    """

    delta: Delta | None
    outcomes: list[Outcome]
    unfit: dict[str, str]
    seconds: float
    about: dict[str, Any]


class _Watch(EditCallback):
    """Keeps the edit batches, and shows the steps where that is wanted."""

    def __init__(self, shown: bool) -> None:
        self.batches: list[EditBatch] = []
        self._shown, self._stack = shown, ExitStack()
        self._report: Report | None = None
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._shown:
            self._report = self._stack.enter_context(stages())

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: object) -> None:
        self._steps += 1
        if self._report is not None:
            self._report("editing", self._steps, max(schedule_of(trainer).epochs * pl_module.steps_per_batch, 1))

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        self.batches.append(batch)

    def close(self) -> None:
        """Takes the bar away."""
        self._stack.close()


def run(module: EditingModule, lm: LM, data: GivenRequests, progress: bool = False) -> Made:
    """Edits the records on a model that is frozen (`kedit.editing.held.in_use`); its weights are as before afterwards.

    Args:
        module: The method, configured.
        lm: The model.
        data: What to edit.
        progress: Show a bar of the optimiser's steps.

    Raises:
        KeditError: As the method says.
    """
    watch, place = _Watch(progress), lm.device
    with ExitStack() as stack:
        stack.enter_context(quiet_lightning())
        stack.enter_context(interruptible())
        stack.enter_context(_apart())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kedit-"))
        stack.callback(module.take_back)
        model: Any = lm.model
        stack.callback(model.to, place)  # Lightning leaves what it has trained on the CPU
        stack.callback(watch.close)
        module.use_lm(lm)
        seed_everything(0, workers=False, verbose=False)  # as `kedit fit` begins
        options: dict[str, Any] = TRAINER_DEFAULTS | _place(lm) | {"logger": False, "enable_checkpointing": False}
        trainer = Trainer(**options, default_root_dir=folder, callbacks=[watch])
        trainer.fit(module, datamodule=data)
        model.to(place)
        deltas = module.deltas if accumulates(module.regime) else [d for batch in watch.batches for d in batch.deltas]
        found = [delta.to(lm.device) for delta in deltas if delta is not None]
        order = {record.request.case_id: place for place, record in enumerate(data.given)}
        outcomes = [outcome for batch in watch.batches for outcome in batch.outcomes]
        outcomes.sort(key=lambda outcome: order[outcome.record.request.case_id])
        delta = Delta.concat(found) if len(found) > 1 else next(iter(found), None)
        unfit = {case: why for case, (_, why) in data.unfit.items()}
        return Made(delta, outcomes, unfit, sum(batch.seconds for batch in watch.batches), module.describe())


def _place(lm: LM) -> dict[str, Any]:
    """The trainer's options that keep the model where it is."""
    if lm.device.type == "cuda":
        return {"accelerator": "gpu", "devices": [lm.device.index or 0]}
    return {"accelerator": "cpu", "devices": 1}


@contextmanager
def _apart() -> Iterator[None]:
    """The user's random numbers and Lightning's variables of the environment come back."""
    names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    before = {name: os.environ.get(name) for name in names}
    try:
        with isolate_rng():
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
