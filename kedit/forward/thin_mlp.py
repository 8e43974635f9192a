"""The last layer's MLP at the places alone whose logits are read: nothing above it looks at the others.

For families of kedit's own table, whose MLP treats every token by itself; another decoder's runs at all tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kedit.model.families import FAMILIES

if TYPE_CHECKING:
    from kedit.model.lm import LM


@contextmanager
def thin_mlp(lm: LM, rows: Tensor, cols: Tensor) -> Iterator[None]:
    """Inside, the last MLP gives zeros at all but some tokens of a batch; rows stay rows, of fewer tokens.

    Args:
        lm: The model.
        rows: `[m]` int64, the row of each place that is read.
        cols: `[m]` int64, its token, 0 or more.
    """
    family = lm.arch.family
    if FAMILIES.get(lm.model.config.model_type) != family or family.mlp == family.mlp_out or not lm.arch.n_layers:
        yield
        return
    mlp = lm.arch.module(lm.model, "mlp", lm.arch.n_layers - 1)
    whole = mlp.forward
    own = "forward" in vars(mlp)

    def thin(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or hidden.ndim != 3:
            return whole(hidden, *args, **kwargs)
        picked, at = _picked(rows.to(hidden.device), cols.to(hidden.device), len(hidden))
        found = whole(hidden.gather(1, picked[:, :, None].expand(-1, -1, hidden.shape[2])))
        if not isinstance(found, Tensor):
            return whole(hidden)
        place = (at[0], at[1])
        return found.new_zeros(*hidden.shape[:2], found.shape[2]).index_put(place, found[at[0], at[2]])

    mlp.forward = thin
    try:
        yield
    finally:
        if own:
            mlp.forward = whole
        else:
            del mlp.forward


def _picked(rows: Tensor, cols: Tensor, n_rows: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The tokens of each row that are read, `[n_rows, k]`, filled up with token 0; each one's row, token and slot."""
    rows, cols = torch.stack([rows, cols]).unique(dim=1)  # by rows
    counts = torch.bincount(rows, minlength=n_rows)
    slots = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    picked = rows.new_zeros(n_rows, max(1, int(counts.max())))
    return picked.index_put((rows, slots), cols), (rows, cols, slots)
