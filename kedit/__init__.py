"""kedit edits facts inside large language models and measures, honestly, what the edit did."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kedit.platforms import unsupported

if TYPE_CHECKING:
    from kedit.delta import Delta, Factors, edited
    from kedit.deltafile import load_delta, save_delta
    from kedit.errors import KeditError
    from kedit.lm import LM, LMConfig, load_lm, wrap_lm
    from kedit.requests import EditRecord, EditRequest, Probe

__version__ = "0.1.0"

__all__ = [
    "LM",
    "Delta",
    "EditRecord",
    "EditRequest",
    "Factors",
    "KeditError",
    "LMConfig",
    "Probe",
    "edited",
    "load_delta",
    "load_lm",
    "save_delta",
    "wrap_lm",
]

_HOMES = ("delta", "deltafile", "errors", "lm", "requests")


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `import kedit` and `kedit --help` are quick."""
    if name in __all__:
        if (why := unsupported()) is not None:
            raise ImportError(why)
        for home in _HOMES:
            module = import_module(f"kedit.{home}")
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module 'kedit' has no attribute {name!r}")
