"""`StopAtSignal`: a signal ends a run where nothing finished is lost."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from kedit.stopping import Stopper


class StopAtSignal(Callback):
    """Ends training after the optimiser step under way, or after the checkpoint of an edit that is being measured.

    Before the first edit batch and after the last one a signal ends the run at once: nothing there is half done that
    a resumed run would need. Lightning's own way under Slurm, a checkpoint in the middle of an edit (`hpc_ckpt_*`) and
    a requeueing of its own, is never taken: where SIGUSR1 has a handler already, it installs none.

    Args:
        stopper: What hears the signals.
    """

    def __init__(self, stopper: Stopper) -> None:
        self.stopper = stopper

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on signals wait; Lightning has put a handler of its own in place for SIGTERM."""
        self.stopper.gentle = True
        self.stopper.install()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """The optimiser step is over."""
        self.stopper.check()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The edit batch before has its checkpoint."""
        self.stopper.check()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All edits are done, and a resumed run measures the end again."""
        self.stopper.gentle = False
        self.stopper.check()
