"""What a sequential run had to keep of its edits, in bytes."""

from __future__ import annotations

import logging
import resource
import sys
from typing import Any

from kedit.runtime.journal import Entry, tensor_bytes

log = logging.getLogger(__name__)


def bytes_kept(entry: Entry, edits: int) -> dict[str, Any]:
    """Bytes of the deltas and of the method's state, in all and per edit; also told in the log.

    Args:
        entry: All edits so far, as a checkpoint holds them.
        edits: How many they are.
    """
    deltas, state = tensor_bytes(entry["deltas"]), tensor_bytes(entry["state"])
    each = (deltas + state) / max(edits, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    also = f" and {state / 1e6:.2f} MB of the method's state" if state else ""
    size = f"deltas of {deltas / 1e6:.2f} MB{also}, {each / 1e3:.2f} kB an edit"
    log.info("kept of %d edits: %s; memory of this process at its peak: %.0f MiB", edits, size, peak)
    return {"edits": edits, "deltas_bytes": deltas, "state_bytes": state, "bytes_per_edit": round(each, 1)}
