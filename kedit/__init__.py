"""kedit edits facts inside large language models and measures, honestly, what the edit did."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kedit.runtime.platforms import unsupported
from kedit.version import __version__

if TYPE_CHECKING:
    from kedit.delta.apply import edited
    from kedit.delta.delta import Delta
    from kedit.delta.factors import Factors
    from kedit.delta.serialization import load_delta, save_delta
    from kedit.errors import KeditError
    from kedit.model.lm import LM, LMConfig, load_lm, wrap_lm
    from kedit.request import EditRecord, EditRequest, Probe

_HOMES = {
    "LM": "kedit.model.lm",
    "Delta": "kedit.delta.delta",
    "EditRecord": "kedit.request",
    "EditRequest": "kedit.request",
    "Factors": "kedit.delta.factors",
    "KeditError": "kedit.errors",
    "LMConfig": "kedit.model.lm",
    "Probe": "kedit.request",
    "edited": "kedit.delta.apply",
    "load_delta": "kedit.delta.serialization",
    "load_lm": "kedit.model.lm",
    "save_delta": "kedit.delta.serialization",
    "wrap_lm": "kedit.model.lm",
}

__all__ = [
    "LM",
    "Delta",
    "EditRecord",
    "EditRequest",
    "Factors",
    "KeditError",
    "LMConfig",
    "Probe",
    "__version__",
    "edited",
    "load_delta",
    "load_lm",
    "save_delta",
    "wrap_lm",
]


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `import kedit` and `kedit --help` are quick."""
    if name in _HOMES:
        if (why := unsupported()) is not None:
            raise ImportError(why)
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'kedit' has no attribute {name!r}")
