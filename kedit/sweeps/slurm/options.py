"""`SlurmOptions`: what the jobs of a sweep ask for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kedit.errors import KeditError, at_least, shown
from kedit.runtime.option_values import check_values, control_in


@dataclass
class SlurmOptions:
    """What every array element gets. Null leaves an option to the cluster's default.

    Args:
        partition: Partition (queue).
        time: Wall-clock limit of one element: D-HH:MM:SS, HH:MM:SS or minutes.
        gpus: GPUs for an element, all of one node; 0: none. With several, `trainer.devices` in the sweep's options.
        mem: Main memory of a node, e.g. 48G.
        cpus: CPU cores of a process.
        account: Account that is charged.
        qos: Quality of service.
        throttle: Elements that may run at the same time; null: as many as fit.
        requeues: Times that an element stopped by SIGUSR1 (its time is nearly up, or it is preempted) may put itself
            back into the queue; 0: never.
        activate: Command that makes kedit available on a node, e.g. "source venv/bin/activate"; null: the shell
            that submits has it, and Slurm passes its environment on.
        extra: More lines for the scripts, e.g. ["--constraint=a100", "--mail-type=END"].
        offline: Load models from the cache alone (HF_HUB_OFFLINE=1), as nodes without internet must.
        stats: Compute the statistics of the keys ahead of the array, in a job of their own.
        collect: Write the table in a job of its own, when the array has ended.
    """

    partition: str | None = None
    time: str = "08:00:00"
    gpus: int = 1
    mem: str | None = "48G"
    cpus: int = 4
    account: str | None = None
    qos: str | None = None
    throttle: int | None = None
    requeues: int = 20
    activate: str | None = None
    extra: list[str] = field(default_factory=list)
    offline: bool = True
    stats: bool = False
    collect: bool = True

    def __post_init__(self) -> None:
        check_values(vars(self))
        at_least("gpus", self.gpus, 0)
        at_least("cpus", self.cpus, 1)
        at_least("requeues", self.requeues, 0)
        at_least("throttle", self.throttle, 1)
        if self.gpus > 8:
            raise KeditError(f"gpus: {self.gpus} is more than the 8 of a node")
        if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", self.time):
            raise KeditError(f"time: {shown(self.time)} is no time of Slurm's, such as 08:00:00 or 1-12:00:00")
        for line in self.extra:
            if not line.startswith("-") or control_in(line):
                raise KeditError(f"extra: {shown(line)} is no option of sbatch's, such as --constraint=a100")
        if self.activate is not None:
            self.activate = self.activate.strip()
            if not self.activate or control_in(self.activate):
                raise KeditError(
                    f"activate: {shown(self.activate)} is no command in one line; join several with ' && '"
                )
        for name in ("partition", "mem", "account", "qos"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[\w.,+:@/-]+", value):
                raise KeditError(f"{name}: {shown(value)} cannot stand in an sbatch script")

    @property
    def processes(self) -> int:
        """Processes of an element: one for each GPU."""
        return max(1, self.gpus)
