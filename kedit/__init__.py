"""kedit edits facts inside large language models and measures, honestly, what the edit did."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kedit.runtime.platforms import unsupported
from kedit.version import __version__

if TYPE_CHECKING:
    from kedit.api import (
        LM,
        Delta,
        Edit,
        EditRecord,
        EditRequest,
        Factors,
        KeditError,
        LMConfig,
        Probe,
        ask,
        edit,
        edited,
        export_hf,
        export_peft,
        load_delta,
        load_edited,
        load_lm,
        save_delta,
        wrap_lm,
    )

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


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `import kedit` and `kedit --help` are quick."""
    if name in __all__:
        if (why := unsupported()) is not None:
            raise ImportError(why)
        return getattr(import_module("kedit.api"), name)
    raise AttributeError(f"module 'kedit' has no attribute {name!r}")
