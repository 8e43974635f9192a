"""`ShardedEdits`: Lightning's DDP without its averaging of gradients, for processes that share out the edits."""

from __future__ import annotations

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy


class ShardedEdits(DDPStrategy):
    """Processes, devices and launching are DDP's. No gradient is exchanged: what is optimised belongs to one process.

    What the processes tell each other (`kedit.processes`) is small and goes over gloo, also where the devices are GPUs.
    """

    def __init__(self) -> None:
        super().__init__(process_group_backend="gloo", timeout=timedelta(days=30))  # statistics may take their time

    def configure_ddp(self) -> None:
        """Leaves the module as it is."""
