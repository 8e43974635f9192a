"""`EditCallback`: Lightning callbacks that also hear of edits, and of the rows and the summary that are made of them.

None searches for another: who has rows, texts or a summary gives them to a hook, and all callbacks hear of them. What
they ask a trainer for is typed here too: `editing`, `data_of`, `schedule_of`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

from kedit.data.datamodule import EditData
from kedit.data.schedule import EditSchedule
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.sampled_texts import SampledTexts
from kedit.request import EditRecord
from kedit.runtime import distributed

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule

Row = dict[str, Any]


class EditCallback(Callback):
    """A Lightning callback with hooks more: before the edits, around every edit batch, and for what was measured.

    They are called in the order of the trainer's callbacks. In the `sequential` regime the delta is already
    part of the weights when `on_edit_end` runs; in the others the weights are the unedited ones.
    """

    def on_check_record(self, trainer: Trainer, module: EditingModule, record: EditRecord) -> None:
        """Called for every record before anything is edited.

        Raises:
            TooLong: A text that this callback will run for the record does not fit into the model's context. The
                record then fails, and the run goes on without it.
        """

    def on_describe(self, trainer: Trainer, module: EditingModule, about: dict[str, Any]) -> None:
        """Called when it is written what the run is; may add to `about["protocol"]`."""

    def on_texts(self, trainer: Trainer, module: EditingModule, texts: SampledTexts) -> None:
        """Called by the first callback that needs sampled texts: whoever needs any takes these."""

    def on_edit_start(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Called when an epoch has taken up its batch and nothing has been changed."""

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Called when the batch has been edited: `batch.outcomes` and `batch.deltas` are there."""

    def on_rows(self, trainer: Trainer, module: EditingModule, rows: list[Row], batch: EditBatch | None) -> None:
        """Called with rows that a callback has measured (`push_rows`); may add to them.

        `batch` is the batch just edited, None for rows of all records edited so far in a sequential run.
        """

    def on_complete_rows(self, trainer: Trainer, module: EditingModule, rows: list[Row]) -> None:
        """Called in every process with rows of all of them, to which nothing more is added: time to keep them."""

    def on_last_edit(self, trainer: Trainer, module: EditingModule) -> None:
        """Called after the last edit, before the run is summed up: time to push what rows there are left."""

    def on_summary(
        self, trainer: Trainer, module: EditingModule, summary: Mapping[str, Any], rows: Iterable[Row]
    ) -> None:
        """Called in the first process when the run has been summed up: time for tables and reports.

        `rows` are all that were kept; they may be gone through more than once.
        """


def call_hooks(trainer: Trainer, hook: str, module: EditingModule, *about: Any) -> None:
    """Calls a hook of every edit callback of the trainer, in their order."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EditCallback):
            getattr(callback, hook)(trainer, module, *about)


def push_rows(trainer: Trainer, module: EditingModule, rows: list[Row], batch: EditBatch | None = None) -> None:
    """Gives rows to all callbacks: to be added to, then to be kept. Every process calls it, with rows or without.

    Args:
        trainer: Whose callbacks.
        module: What was measured.
        rows: Layout: `kedit.results.rows.edit_row`.
        batch: The batch just edited, None for rows of all records edited so far in a sequential run.
    """
    if rows:
        call_hooks(trainer, "on_rows", module, rows, batch)
    if module.regime == "single":  # each process edits records of its own
        rows = [row for part in distributed.gather(rows) for row in part]
    if rows:
        call_hooks(trainer, "on_complete_rows", module, rows)


@runtime_checkable
class _Edits(Protocol):
    """What tells a kedit method from another LightningModule; the class itself imports this file."""

    @property
    def editor(self) -> EditingModule: ...

    def edits(self, batch: EditBatch | None = None) -> Any: ...


def editing(module: LightningModule) -> EditingModule:
    """`module` as the editing module it must be.

    Raises:
        TypeError: Another LightningModule is being trained.
    """
    if not isinstance(module, _Edits):
        raise TypeError(f"an EditCallback needs a kedit method, not {type(module).__name__}")
    return cast("EditingModule", module)


def data_of(trainer: Trainer) -> EditData:
    """The data module whose records a trainer's run edits.

    Raises:
        TypeError: It was given another one, or none.
    """
    data = getattr(trainer, "datamodule", None)  # Lightning sets it when a run begins
    if not isinstance(data, EditData):
        raise TypeError(f"a kedit method edits the records of an EditData, not of {type(data).__name__}")
    return data


def schedule_of(trainer: Trainer) -> EditSchedule:
    """Which records a trainer's run edits, and when."""
    return data_of(trainer).schedule
