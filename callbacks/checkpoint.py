"""`EditCheckpoint`: after every edit batch, what an interrupted run needs to go on (never the base weights)."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from kedit.runfolder import CHECKPOINT


class EditCheckpoint(ModelCheckpoint):
    """Keeps one checkpoint, replaced in one step, in the trainer's `default_root_dir`.

    Args:
        every: Edit batches between two checkpoints. A run that is killed goes on from the last one.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__(
            filename=CHECKPOINT.stem,
            monitor=None,
            save_top_k=1,
            every_n_epochs=every,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Puts the checkpoint where `--run.resume` looks for it."""
        self.dirpath = str(Path(trainer.default_root_dir) / CHECKPOINT.parent)
        super().setup(trainer, pl_module, stage)
