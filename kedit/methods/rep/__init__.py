"""REP's adapters: what they are trained on, how, and when their gates open. No Lightning in here."""

from kedit.methods.rep.calibrate import figures
from kedit.methods.rep.closed import closed_form
from kedit.methods.rep.config import AdapterConfig, parity_config
from kedit.methods.rep.keys import Claims, KeySource, Task
from kedit.methods.rep.strength import choose_reach, stronger
from kedit.methods.rep.train import AdapterLanes

__all__ = [
    "AdapterConfig",
    "AdapterLanes",
    "Claims",
    "KeySource",
    "Task",
    "choose_reach",
    "closed_form",
    "figures",
    "parity_config",
    "stronger",
]
