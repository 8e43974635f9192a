"""`ShardedEdits`: Lightning's DDP without its averaging of gradients, for processes that share out the edits."""

from __future__ import annotations

import signal
from datetime import timedelta
from types import FrameType

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from kedit import processes


class ShardedEdits(DDPStrategy):
    """Processes, devices and launching are DDP's. No gradient is exchanged: what is optimised belongs to one process.

    What the processes tell each other (`kedit.processes`) is small and goes over gloo, also where the devices are GPUs.
    """

    def __init__(self) -> None:
        super().__init__(process_group_backend="gloo", timeout=timedelta(days=30))  # statistics may take their time

    def configure_ddp(self) -> None:
        """Leaves the module as it is."""

    def on_train_start(self) -> None:
        """From here on SIGTERM stops all processes at the same step: the first one tells the others (Lightning)."""
        module = self.lightning_module
        assert module is not None
        trainer: Trainer = module.trainer

        def stop(number: int, frame: FrameType | None) -> None:
            trainer._signal_connector.received_sigterm = processes.first()  # its own handler may broadcast in between

        signal.signal(signal.SIGTERM, stop)
