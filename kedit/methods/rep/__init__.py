"""REP's adapters: what they are trained on, how, and when their gates open. No Lightning in here."""

from kedit.methods.rep.calibrate import summary_row, summary_rows
from kedit.methods.rep.closed import closed_form
from kedit.methods.rep.config import AdapterConfig, parity_config
from kedit.methods.rep.keys import AdapterTask, Claims, KeySource
from kedit.methods.rep.strength import choose_edit_strength, stronger
from kedit.methods.rep.train import AdapterTrainer

__all__ = [
    "AdapterConfig",
    "AdapterTask",
    "AdapterTrainer",
    "Claims",
    "KeySource",
    "choose_edit_strength",
    "closed_form",
    "parity_config",
    "stronger",
    "summary_row",
    "summary_rows",
]
