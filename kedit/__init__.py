"""kedit edits facts inside large language models and measures, honestly, what the edit did."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kedit.runtime.platforms import unsupported
from kedit.version import __version__

if TYPE_CHECKING:
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
    "__version__",
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

_HOMES = {  # name -> the module that defines it
    "Delta": "kedit.delta.delta",
    "Edit": "kedit.editing.edit",
    "EditRecord": "kedit.request",
    "EditRequest": "kedit.request",
    "Factors": "kedit.delta.factors",
    "KeditError": "kedit.errors",
    "LM": "kedit.model.lm",
    "LMConfig": "kedit.model.lm",
    "Probe": "kedit.request",
    "ask": "kedit.editing.said",
    "edit": "kedit.editing.make",
    "edited": "kedit.editing.said",
    "export_hf": "kedit.export",
    "export_peft": "kedit.export",
    "load_delta": "kedit.delta.serialization",
    "load_edited": "kedit.export",
    "load_lm": "kedit.forward.binding",
    "save_delta": "kedit.delta.serialization",
    "wrap_lm": "kedit.forward.binding",
}


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `import kedit` and `kedit --help` are quick."""
    if name in _HOMES:
        if (why := unsupported()) is not None:
            raise ImportError(why)
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kedit' has no attribute {name!r}")
