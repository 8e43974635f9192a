"""One forward pass of the model as it is, with the output head run only where its logits are read.

The model's own forward is called, so whatever it does to its logits (Gemma 2's soft cap, Cohere's and
Granite's scale, GPT-J's bias) is done without a table of families here. Batching lives with the callers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kedit.forward.thin_head import thin_head

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas
    from kedit.model.lm import LM


def logits_at(lm: LM, ids: Tensor, rows: Tensor, cols: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
    """Logits at the positions `(rows[i], cols[i])` of a batch, and at no other.

    Args:
        lm: Model and tokenizer.
        ids: `[batch, T]` token ids. Right-padded rows need no attention mask: a causal decoder's real
            tokens never see what comes after them, and positions count from 0.
        rows: `[m]` int64, row of each wanted position.
        cols: `[m]` int64, its column; negative ones count from the end.
        kwargs: Passed on to the model (`use_cache`, `past_key_values`, ...).

    Returns:
        Logits `[m, vocab]` in the model's dtype, and the model's whole output.
    """

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]  # [batch, T, d_model]
        return (hidden[rows.to(hidden.device), cols.to(hidden.device)].unsqueeze(0), *args[1:])

    head = lm.arch.head(lm.model)
    handle = head.register_forward_pre_hook(pick)
    try:
        with thin_head(head, len(rows)):
            output = lm.model(input_ids=ids, **kwargs)
    finally:
        handle.remove()
    return output.logits[0], output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout inside the block; the training mode of before afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside the block; the training mode of before afterwards.

    `no_grad`, not `inference_mode`: some models keep tables that they compute in their forward (rotary
    embeddings), and an inference tensor left there would break the next backward pass.
    """
    with evaluating(model), torch.no_grad():
        yield


def lane_rows(bank: BatchedDeltas | None, lanes: list[int]) -> AbstractContextManager[None]:
    """`bank.rows(lanes)`, or nothing where no row of the batch is edited."""
    if bank is None or all(lane < 0 for lane in lanes):
        return nullcontext()
    return bank.rows(torch.tensor(lanes, dtype=torch.long))


def check_lanes(lanes: list[int], bank: BatchedDeltas | None, n_rows: int) -> None:
    """Raise `ValueError` unless `lanes` names a lane of `bank` (or -1) for every row."""
    if len(lanes) != n_rows:
        raise ValueError(f"{len(lanes)} lanes for {n_rows} rows")
    top = -1 if bank is None else bank.n_lanes - 1
    if any(not -1 <= lane <= top for lane in lanes):
        raise ValueError(f"lanes must be -1 to {top}, got {min(lanes)} to {max(lanes)}")


def default_batch_tokens(device: torch.device) -> int:
    """Padded tokens in one batch that keep `device` busy (docs/metrics.md has the measurement)."""
    return 512 if device.type == "cpu" else 16_384
