"""Progress on the terminal: edits done, edits per second, time left; on no terminal, a log line now and then."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kedit.errors import at_least
from kedit.methods.base.callback import EditCallback, editing, schedule_of
from kedit.methods.base.edit_batch import EditBatch
from kedit.runtime import distributed

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule

log = logging.getLogger(__name__)


class EditProgress(EditCallback):
    """Shows how far the run is.

    Args:
        log_every: On no terminal (a log file, a cluster), seconds between two lines.
    """

    def __init__(self, log_every: float = 30.0) -> None:
        at_least("progress.log_every", log_every, 0)
        self.log_every = log_every
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._done = self._total = self._failed = 0
        self._start = self._last = 0.0
        self._begun = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the work."""
        schedule = schedule_of(trainer)
        batches = schedule.done_after((trainer.max_epochs or 0) - 1)
        self._total = len(schedule.edited_in(batches))
        self._done = self._begun = len(schedule.edited_in(min(batches, editing(pl_module).edits_done)))
        self._start = self._last = time.monotonic()
        self._bar = Progress(
            TextColumn("editing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not (self._console.is_terminal and distributed.is_main()),
        )
        self._bar.start()
        self._task = self._bar.add_task("edit", total=self._total, completed=self._done, rate="", note="")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """Shows the step and the mean loss of the lanes."""
        if self._bar is None or self._task is None:
            return
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last < self.log_every:
            return
        loss = trainer.callback_metrics.get("loss")
        step = trainer.fit_loop.epoch_loop.batch_idx + 1
        note = f"step {step}" + ("" if loss is None else f", loss {float(loss):.3f}")
        if self._console.is_terminal:
            self._bar.update(self._task, note=note)
        else:
            self._last = now
            log.info("%d of %d edits done; the next: %s", self._done, self._total, note)

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Counts the batch's edits."""
        edits = (len(batch.records), sum(outcome.error is not None for outcome in batch.outcomes))
        for records, failed in distributed.gather(edits) if module.regime == "single" else [edits]:
            self._done += records
            self._failed += failed
        now = time.monotonic()
        rate = (self._done - self._begun) / max(now - self._start, 1e-9)
        text = f"{rate:.2f} edits/s" + (f", {self._failed} failed" if self._failed else "")
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=text)
        if not self._console.is_terminal and (now - self._last >= self.log_every or self._done == self._total):
            self._last = now
            left = (self._total - self._done) / max(rate, 1e-9)
            log.info("%d of %d edits, %s, about %.0f s left", self._done, self._total, text, left)

    def on_last_edit(self, trainer: Trainer, module: EditingModule) -> None:
        """Closes the bar, before tables are printed."""
        self._stop()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar, where nobody sums the run up."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Closes the bar, so that the message below it can be read."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
