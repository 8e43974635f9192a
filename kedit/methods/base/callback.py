"""`EditCallback`: Lightning callbacks that also hear of edits and of the rows that are written about them.

And what they ask a trainer for, typed: `editing`, `data_of`, `schedule_of`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer

from kedit.data.datamodule import EditData
from kedit.data.schedule import EditSchedule
from kedit.methods.base.edit_batch import EditBatch
from kedit.request import EditRecord

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule


class EditCallback(Callback):
    """A Lightning callback with hooks more: before the edits, and around every edit batch.

    They are called in the order of the trainer's callbacks. In the `sequential` regime the delta is already
    part of the weights when `on_edit_end` runs; in the others the weights are the unedited ones.
    """

    def on_check_record(self, trainer: Trainer, module: EditingModule, record: EditRecord) -> None:
        """Called for every record before anything is edited.

        Raises:
            TooLong: A text that this callback will run for the record does not fit into the model's context. The
                record then fails, and the run goes on without it.
        """

    def on_edit_start(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Called when an epoch has taken up its batch and nothing has been changed."""

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Called when the batch has been edited: `batch.outcomes` and `batch.deltas` are there."""

    def on_rows(
        self, trainer: Trainer, module: EditingModule, rows: list[dict[str, Any]], batch: EditBatch | None
    ) -> None:
        """Called right before `rows` are written to `results.jsonl`; may add to them.

        `batch` is the batch just edited, None for rows of all records edited so far in a sequential run.
        """


def call_hooks(trainer: Trainer, hook: str, module: EditingModule, *about: Any) -> None:
    """Calls a hook of every edit callback of the trainer, in their order."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EditCallback):
            getattr(callback, hook)(trainer, module, *about)


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
