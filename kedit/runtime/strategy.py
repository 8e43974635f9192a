"""`ShardedEdits`: Lightning's DDP without its averaging of gradients, for processes that share out the edits."""

from __future__ import annotations

import atexit
from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy

from kedit.runtime import distributed


class ShardedEdits(DDPStrategy):
    """Processes, devices and launching are DDP's. No gradient is exchanged: what is optimised belongs to one process.

    What the processes tell each other (`kedit.runtime.distributed`) is small and goes over gloo, also where the
    devices are GPUs.
    """

    def __init__(self) -> None:
        super().__init__(process_group_backend="gloo", timeout=timedelta(days=30))  # statistics may take their time

    def configure_ddp(self) -> None:
        """Leaves the module as it is."""

    def setup_environment(self) -> None:
        """Connects the processes, and has each leave its group before Python goes away: gloo's threads do not survive
        that (a finished process then aborts now and then, and Slurm ends the others of the job with it).
        """
        super().setup_environment()
        atexit.unregister(distributed.leave)  # a second run of this process finds the group as it is
        atexit.register(distributed.leave)
