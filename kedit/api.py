"""The names that a Python user needs, gathered from the packages: `import kedit`, then `kedit.NAME`.

Nothing is defined here. `kedit` itself imports this module when the first of the names is used.
"""

from __future__ import annotations

from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.serialization import load_delta, save_delta
from kedit.editing.edit import Edit
from kedit.editing.make import edit
from kedit.editing.said import ask, edited
from kedit.errors import KeditError
from kedit.export import export_hf, export_peft, load_edited
from kedit.forward.binding import load_lm, wrap_lm
from kedit.model.lm import LM, LMConfig
from kedit.request import EditRecord, EditRequest, Probe

__all__ = [
    "LM",
    "Delta",
    "Edit",
    "EditRecord",
    "EditRequest",
    "Factors",
    "KeditError",
    "LMConfig",
    "Probe",
    "ask",
    "edit",
    "edited",
    "export_hf",
    "export_peft",
    "load_delta",
    "load_edited",
    "load_lm",
    "save_delta",
    "wrap_lm",
]
