"""Fields of a file that nobody reads: one warning a file, so that a slip of the pen does not lose probes in silence."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from pathlib import Path

from kedit.data.readers.parse import ALIASES
from kedit.errors import shown

log = logging.getLogger(__name__)

MOST = 6  # fields that are named


def say_unread(path: str | Path, unread: Mapping[str, int]) -> None:
    """Names the fields that were passed over.

    Args:
        path: The file.
        unread: Field -> number of records that have it; `neighbors.x` is the field `x` of an object in `neighbors`.
    """
    if not unread:
        return
    told = [f"{shown(name, 60)} ({n} record{'' if n == 1 else 's'}{_meant(name)})" for name, n in unread.items()]
    more = f" and {len(told) - MOST} more" if len(told) > MOST else ""
    log.warning("%s: these fields are not read: %s%s; docs/data.md has the names", path, ", ".join(told[:MOST]), more)


def _meant(name: str) -> str:
    """The name that was probably meant."""
    last = name.rpartition(".")[2]
    known = sorted({alias for aliases in ALIASES.values() for alias in aliases})
    close = difflib.get_close_matches(last, known, n=1, cutoff=0.75) if last not in known else []
    return f", did you mean '{close[0]}'?" if close else ""
