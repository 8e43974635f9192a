"""Where it costs time that the host waits for a result.

A CPU computes when it is asked to, so that looking at a number is free, and work for fewer keys is less work. Any other
device works through a queue: a look empties it, and then it waits for the host. What both do best differs, so adapters
and gates have two ways through the same mathematics; this is where one is chosen.
"""

from __future__ import annotations

import torch


def waiting_costs(device: torch.device) -> bool:
    """Whether a look at a tensor on `device` holds up its queue."""
    return device.type != "cpu"
