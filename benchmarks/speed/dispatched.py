"""How many operations a piece of work hands to the device: a figure that does not depend on the machine.

Where a GPU waits for launches, the number of operations is the time. Views and allocations hand nothing to the device
and are counted apart; a call that takes lists of tensors (`_foreach_*`, fused optimisers) counts once.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NO_WORK = ("aten._unsafe_view", "aten.empty", "aten.new_empty", "aten.lift_fresh")
WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select", "aten.is_nonzero")
INDEXED = ("aten.index.", "aten.index_put")  # these wait where the index is a mask


class Dispatched(TorchDispatchMode):
    """Counts the operations dispatched inside, those of the backward pass with them.

    Attributes:
        operations: Name -> times, of the operations that compute or copy.
        views: Name -> times, of those that allocate, or look at memory otherwise.
        waits: Name -> times, of those among the operations for whose result the host waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.views: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    @property
    def n(self) -> int:
        """Operations that compute or copy."""
        return self.operations.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        (self.views if func.is_view or name.startswith(NO_WORK) else self.operations)[name] += 1
        if name.startswith(WAITS) or (name.startswith(INDEXED) and _has_mask(args)):
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


def _has_mask(args: Any) -> bool:
    return any(isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1]))
