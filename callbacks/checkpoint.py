"""`EditCheckpoint`: after every edit batch, what an interrupted run needs to go on (never the base weights)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from kedit.errors import at_least
from kedit.methods.base.callback import EditCallback, editing
from kedit.methods.base.edit_batch import EditBatch
from kedit.runtime.files import writing
from kedit.runtime.journal import Entry, Journal
from kedit.runtime.run_folder import CHECKPOINT

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule


class EditCheckpoint(Checkpoint, EditCallback):
    """Keeps one checkpoint, replaced in one step, in the trainer's `default_root_dir`.

    Where edits accumulate, what each batch adds (its delta, say) is appended once to a journal beside it, so that a
    checkpoint costs the same after a thousand edits as after one. The checkpoint says how much of the journal is its.

    Args:
        every: Edit batches between two checkpoints. A run that is killed goes on from the last one.
    """

    def __init__(self, every: int = 1) -> None:
        at_least("checkpoint.every", every, 1)
        self.every = every
        self._journal: Journal | None = None
        self._pending: list[Entry] = []  # not in the journal yet
        self._saving = False

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Goes on with the journal of the checkpoint; with a copy of it where that is another run's."""
        card = checkpoint["kedit"].get("journal")
        if card is None:
            return
        theirs = Journal.of_card(Path(str(trainer.ckpt_path)).parent, card).path
        self._journal = Journal.of_card(_folder(trainer), card)
        mine = self._journal.path
        if theirs.resolve() != mine.resolve() and trainer.is_global_zero:
            with writing(mine):
                mine.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(theirs, mine)

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Takes up what the batch has added."""
        if module.regime == "sequential" and trainer.is_global_zero and not _dev(trainer):
            self._pending.append(module.edits(batch))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves, when it is time. Lightning calls this after the module's own hook, which ends the edit."""
        if (trainer.current_epoch + 1) % self.every == 0 and not _dev(trainer):
            self.save(trainer, editing(pl_module))

    def save(self, trainer: Trainer, module: EditingModule) -> None:
        """Writes the journal, then the checkpoint that vouches for it.

        Raises:
            KeditError: The disk is full or the folder cannot be written; the last checkpoint is as it was.
        """
        path = _folder(trainer) / CHECKPOINT.name
        partial = path.with_suffix(".partial")
        if module.regime == "sequential" and trainer.is_global_zero:
            self._write_journal(_folder(trainer), module)
        self._saving = True
        with writing(path, partial):
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(partial, path)
        self._saving = False
        if self._journal is not None and trainer.is_global_zero:
            for old in set(path.parent.glob("edits-*.bin")) - {self._journal.path}:
                old.unlink(missing_ok=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Says that the edits are in the journal; checkpoints that others ask for hold them all themselves."""
        if self._saving and editing(pl_module).regime == "sequential":  # the first process has the journal, and saves
            checkpoint["kedit"] = {"journal": None if self._journal is None else self._journal.card()}

    def _write_journal(self, folder: Path, module: EditingModule) -> None:
        """Appends what is pending; begins a new file where the sum of all is much less, or where there is no file."""
        journal, entries, base = self._journal, self._pending, False
        if journal is None or (module.merges_deltas and journal.grown):
            base = len(entries) < module.edits_done
            journal = Journal.new(folder, module.edits_done)
            entries = [module.edits()] if base else entries
        journal.append(entries, base)
        self._journal, self._pending = journal, []


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / CHECKPOINT.parent


def _dev(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
