"""`StopAtSignal`: a signal ends a run where nothing finished is lost."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kedit.runtime import distributed
from kedit.runtime.signals import Stopped, Stopper


class StopAtSignal(Callback):
    """Ends training after the optimiser step under way, or after the checkpoint of an edit that is being measured.

    Before the first edit batch and after the last one a signal ends the run at once: nothing there is half done that
    a resumed run would need. Lightning's own handlers are never installed: they would write a checkpoint in the middle
    of an edit under Slurm (`hpc_ckpt_*`), requeue the job by themselves, and let several processes wait for each other
    inside a handler. A run of several processes ends in all of them at the same step, whichever heard the signal.

    Args:
        stopper: What hears the signals.
    """

    def __init__(self, stopper: Stopper) -> None:
        self.stopper = stopper

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the place of Lightning's handlers, which would be installed next."""
        connector: Any = trainer._signal_connector  # type: ignore[attr-defined]
        connector.register_signal_handlers = self.stopper.install

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on signals wait."""
        self.stopper.hold()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        """The optimiser step is over."""
        self._check()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The edit batch before has its checkpoint."""
        self._check()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All edits are done, and a resumed run measures the end again."""
        self._check()
        self.stopper.release()

    def _check(self) -> None:
        """End here if a process has heard a signal.

        Raises:
            Stopped: One did.
        """
        if not distributed.all_true(self.stopper.received is None):
            heard = [number for number in distributed.gather(self.stopper.received) if number is not None]
            raise Stopped(heard[0])
