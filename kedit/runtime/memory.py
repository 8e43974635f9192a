"""How much memory there is, before something large is begun."""

from __future__ import annotations

import torch

from kedit.runtime.free_memory import free_memory


def free_bytes(device: torch.device) -> int | None:
    """Bytes that could be taken now on a device; None where the system does not say (a CPU without /proc)."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_memory() if device.type == "cpu" else None


def gigabytes(n: float) -> str:
    """A number of bytes for messages, e.g. `"1.3 GB"`."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
