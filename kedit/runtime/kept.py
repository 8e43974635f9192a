"""What a run took of memory, and what a sequential one had to keep of its edits, in bytes."""

from __future__ import annotations

import logging
import resource
import sys
from typing import Any

import torch

from kedit.runtime.journal import Entry, tensor_bytes

log = logging.getLogger(__name__)


def peak_memory(device: torch.device | None = None) -> int:
    """Most memory that this process has had so far, in bytes.

    Args:
        device: A GPU: its memory that tensors took. None, or a CPU: that of the process, model and program included.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def bytes_kept(entry: Entry, edits: int) -> dict[str, Any]:
    """Bytes of the deltas and of the method's state, in all and per edit; also told in the log.

    Args:
        entry: All edits so far, as a checkpoint holds them.
        edits: How many they are.
    """
    deltas, state = tensor_bytes(entry["deltas"]), tensor_bytes(entry["state"])
    each = (deltas + state) / max(edits, 1)
    also = f" and {state / 1e6:.2f} MB of the method's state" if state else ""
    size = f"deltas of {deltas / 1e6:.2f} MB{also}, {each / 1e3:.2f} kB an edit"
    log.info("kept of %d edits: %s; memory of this process at its peak: %.0f MiB", edits, size, peak_memory() / 2**20)
    return {"edits": edits, "deltas_bytes": deltas, "state_bytes": state, "bytes_per_edit": round(each, 1)}
