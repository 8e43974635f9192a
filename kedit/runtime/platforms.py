"""Which systems kedit runs on: those with POSIX signals and file locks. Windows has neither, and is told so at once.

Asked for by what is there, not by the system's name. Nothing else is imported here.
"""

from __future__ import annotations

import signal
from importlib import import_module

SIGNALS = ("SIGUSR1", "SIGHUP")


def unsupported() -> str | None:
    """What to say where kedit cannot run; None where it can."""
    lacking = [name for name in SIGNALS if not hasattr(signal, name)]
    try:
        import_module("fcntl")
    except ModuleNotFoundError:
        lacking.append("file locks (fcntl)")
    if not lacking:
        return None
    return f"kedit runs on Linux and macOS; this system lacks {', '.join(lacking)}. On Windows, use it inside WSL"
