"""`EditData`: what Lightning sees of a data set. An epoch edits one edit batch; every optimiser step gets that batch.

The data sets themselves are in `datasets.py`, what they read with in `readers/`; which records are edited is said in
`chosen_records.py`, and when in `schedule.py`.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule

from kedit.data.batching import Batches, EpochSteps, form_batches
from kedit.data.card import card
from kedit.data.choosing import Method
from kedit.data.chosen_records import ChosenRecords
from kedit.data.schedule import EditSchedule
from kedit.errors import KeditError, at_least
from kedit.request import EditRecord

log = logging.getLogger(__name__)


class EditData(ChosenRecords, LightningDataModule):
    """Records cut into edit batches. A data set is this class and a `read`; `ChosenRecords` has its options."""

    _schedule: EditSchedule | None = None

    @property
    def schedule(self) -> EditSchedule:
        """Which records are edited when: as `make_schedule` said last, in edit batches of `batch_size` before."""
        if self._schedule is None or self._schedule.records is not self.records:  # the model has chosen since
            return self.make_schedule()
        return self._schedule

    @property
    def batches(self) -> Batches:
        """The edit batches of the schedule, in order."""
        return self.schedule.batches

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the records to edit, with their probes, in order."""
        return self.schedule.fingerprint

    def make_schedule(
        self, size: int | None = None, sort_by_length: bool | None = None, width: int = 1, rank: int = 0
    ) -> EditSchedule:
        """Schedules the edits anew; a method whose lanes are independent calls it with its number of lanes.

        Args:
            size: Requests in an edit batch; the constructor's `batch_size` when None.
            sort_by_length: As the constructor's, which None leaves in force.
            width: Edit batches of an epoch, one for each process, where processes edit different ones.
            rank: Which of them is this process's.
        """
        at_least("data.batch_size", size, 1)
        size = self.batch_size if size is None else size
        sort = self.sort_by_length if sort_by_length is None else sort_by_length
        self._schedule = EditSchedule(self.records, size, sort, width, rank, self.form)
        return self._schedule

    def form(self, records: list[EditRecord], size: int, sort_by_length: bool) -> Batches:
        """How records become edit batches; a data set whose records belong together has its own way."""
        return form_batches(records, size, sort_by_length)

    def setup(self, stage: str | None = None) -> None:
        """Reads the records; the method that is trained checks and chooses them."""
        if self.trainer is not None:
            method = cast(Method, self.trainer.lightning_module)
            self.regime = method.regime
            if self.chat:
                method.use_lm(self.asking(method.lm))
            self.prepare(method.prepare_records, lambda: method.lm, method.unfit_records)
        log.debug("%s: %d edit batches", self.name, len(self.batches))  # and so a bad file stops here

    def train_dataloader(self) -> EpochSteps:
        """The current epoch's edit batch, once per optimiser step (`module.steps_per_batch` of them).

        Raises:
            KeditError: There are fewer edit batches than epochs.
        """
        trainer = self.trainer
        if trainer is None:
            raise RuntimeError("train_dataloader needs a Trainer: it yields the batch of the trainer's epoch")
        epoch, schedule = trainer.current_epoch, self.schedule
        if epoch >= schedule.epochs:
            raise KeditError(
                f"trainer.max_epochs: epoch {epoch} has nothing to edit; "
                f"{self.name} has {len(schedule.batches)} edit batches, {schedule.width} in an epoch"
            )
        return EpochSteps(schedule.batch_of(epoch), cast(Method, trainer.lightning_module).steps_per_batch)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leaves the batch alone: records hold text (and Lightning refuses frozen dataclasses)."""
        return batch

    def describe(self) -> dict[str, Any]:
        """What results keep of the data: its name, options, fingerprint and counts (JSON-able)."""
        return card(self)
