"""The residual stream after every block, at one token of many rows, in one forward pass each.

These are the states that leave the blocks: of the last one, that before the final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.forward.activations import Row, reading
from kedit.forward.logits import default_batch_tokens, frozen, lane_rows
from kedit.model.tokenization import pad_right

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas
    from kedit.model.lm import LM


def states(
    lm: LM,
    rows: Sequence[Row],
    columns: Sequence[int],
    bank: BatchedDeltas | None = None,
    batch_tokens: int | None = None,
    last: Callable[[list[int], Tensor], None] | None = None,
) -> Tensor:
    """Hidden states of every layer at one token of each row.

    Args:
        lm: The model, with the weights that it should have.
        rows: What to run; rows of like length share a batch, whatever their lanes.
        columns: The token of each row, counted from its first.
        bank: Private deltas of the rows.
        batch_tokens: Padded tokens of one forward pass, at least one row; None: by device.
        last: Called for every batch with the indices of its rows and what leaves the last block,
            `[rows of the batch, T, d_model]`, on the model's device.

    Returns:
        `[n_rows, n_layers, d_model]`, float32, on the CPU.
    """
    layers = [lm.arch.layer(lm.model, i) for i in range(lm.arch.n_layers)]
    found = torch.empty(len(rows), len(layers), lm.d_model)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][1]), reverse=True)
    budget, start = batch_tokens or default_batch_tokens(lm.device), 0
    while start < len(order):
        part = order[start : start + max(1, budget // len(rows[order[start]][1]))]
        ids, _ = pad_right([rows[i][1] for i in part], lm.pad_id, lm.device)
        column = torch.tensor([columns[i] for i in part], device=lm.device)
        of_row = torch.arange(len(part), device=lm.device)
        seen: list[Tensor] = []

        def tap(state: Tensor, seen: list[Tensor] = seen, at: tuple[Tensor, Tensor] = (of_row, column)) -> None:
            seen.append(state[at].float())

        def top(state: Tensor, tap: Callable[[Tensor], None] = tap, part: list[int] = part) -> None:
            tap(state)
            if last is not None:
                last(part, state)

        taps = {layer: top if i == len(layers) - 1 else tap for i, layer in enumerate(layers)}
        with frozen(lm.model), lane_rows(bank, [rows[i][0] for i in part]), reading(taps, "output"):
            lm.model.base_model(input_ids=ids, use_cache=False)
        found[part] = torch.stack(seen, 1).cpu()
        start += len(part)
    return found


def last_states(lm: LM, rows: Sequence[tuple[int, ...]]) -> Tensor:
    """`states` of the shared weights at the last token of each row."""
    return states(lm, [(-1, row) for row in rows], [len(row) - 1 for row in rows])
