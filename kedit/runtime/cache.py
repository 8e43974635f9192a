"""Where kedit keeps what is costly to make again (models, statistics, sampled text, anchors, traces). Nothing else."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$KEDIT_CACHE`, else `$XDG_CACHE_HOME/kedit`, else `~/.cache/kedit`; not created here."""
    if own := os.environ.get("KEDIT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kedit"
