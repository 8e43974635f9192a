"""Keys and hidden states at the subject's last token, for many requests at once, on whatever the weights are now.

What the multi-layer methods (MEMIT, EMMET, ...) read again at every layer, with the changes made so far. A row ends
at the subject's last token, since a causal decoder's states there cannot depend on what follows; equal rows run
once, rows are sorted by length, and the model stops at the module that is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from kedit.forward import check_lanes, default_batch_tokens, frozen, lane_rows
from kedit.tokens import encode_subject, pad_right

if TYPE_CHECKING:
    from kedit.lanes import LaneBank
    from kedit.lm import LM
    from kedit.requests import EditRequest


def context_weights(groups: Sequence[int]) -> list[float]:
    """Weight of every context when its group is averaged first, then the groups (baselines 1.0, "Key computation").

    Args:
        groups: Sizes of the groups in the contexts' order; the bare prompt is a group of 1.

    Returns:
        A weight per context, summing to 1: `[1, 5]` gives 1/2 and five times 1/10.
    """
    return [1.0 / (len(groups) * size) for size in groups for _ in range(size)]


def mean_keys(
    lm: LM,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    weights: Sequence[float],
    layer: int,
    bank: LaneBank | None = None,
    lanes: Sequence[int] | None = None,
    batch_tokens: int | None = None,
) -> Tensor:
    """Keys of `layer` (inputs of its `mlp_out`) at the subject's last token, averaged over the contexts.

    Args:
        lm: The model, with the weights that it should have.
        requests: One key each.
        contexts: Context templates with one `{}`.
        weights: Weight of each context in the mean.
        layer: The layer.
        bank: Private deltas of the requests.
        lanes: Lane of each request in `bank`, -1 for the shared weights; None: no lanes.
        batch_tokens: Padded tokens of one forward pass; None: by device.

    Returns:
        `[n, d_in]`, float64.

    Raises:
        KeditError: No token covers a subject, or a text is longer than the model's context.
    """
    if len(weights) != len(contexts):
        raise ValueError(f"{len(weights)} weights for {len(contexts)} contexts")
    module = lm.arch.module(lm.model, "mlp_out", layer)
    rows = _rows(lm, requests, contexts, lanes, bank)
    return _read(lm, rows, weights, len(requests), module, "input", bank, batch_tokens)


def hidden_states(
    lm: LM,
    requests: Sequence[EditRequest],
    layer: int,
    bank: LaneBank | None = None,
    lanes: Sequence[int] | None = None,
    batch_tokens: int | None = None,
) -> Tensor:
    """Residual stream that leaves `layer`, at the subject's last token of the bare prompt: MEMIT's h.

    Args:
        lm: The model, with the weights that it should have.
        requests: One state each.
        layer: The layer.
        bank: Private deltas of the requests.
        lanes: Lane of each request in `bank`, -1 for the shared weights; None: no lanes.
        batch_tokens: Padded tokens of one forward pass; None: by device.

    Returns:
        `[n, d_model]`, float64.
    """
    rows = _rows(lm, requests, ["{}"], lanes, bank)
    return _read(lm, rows, [1.0], len(requests), lm.arch.layer(lm.model, layer), "output", bank, batch_tokens)


_Row = tuple[int, tuple[int, ...]]  # lane, tokens up to the subject's last one
_Users = list[tuple[int, int]]  # (request, context) that read from the row
_Side = Literal["input", "output"]


def _rows(
    lm: LM,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    lanes: Sequence[int] | None,
    bank: LaneBank | None,
) -> list[tuple[_Row, _Users]]:
    """What has to be run, longest first. Tokenised with the target, as the rows of v* are."""
    lane_of = [-1] * len(requests) if lanes is None else list(lanes)
    check_lanes(lane_of, bank, len(requests))
    rows: dict[_Row, _Users] = {}
    for i, (r, lane) in enumerate(zip(requests, lane_of, strict=True)):
        for c, context in enumerate(contexts):
            t = encode_subject(lm, r.prompt, r.subject, r.target_new, context, f"record {r.case_id}")
            rows.setdefault((lane, t.ids[: t.subject_last + 1]), []).append((i, c))
    return sorted(rows.items(), key=lambda item: len(item[0][1]), reverse=True)


def _batches(rows: list[tuple[_Row, _Users]], batch_tokens: int) -> Iterator[list[tuple[_Row, _Users]]]:
    """Sorted rows in batches of bounded padded tokens, at least one row each."""
    start = 0
    while start < len(rows):
        count = max(1, batch_tokens // len(rows[start][0][1]))
        yield rows[start : start + count]
        start += count


class _Reached(Exception):
    """The module that is read has been reached; the rest of the model need not run."""


def _read(
    lm: LM,
    rows: list[tuple[_Row, _Users]],
    weights: Sequence[float],
    n: int,
    module: nn.Module,
    side: _Side,
    bank: LaneBank | None,
    batch_tokens: int | None,
) -> Tensor:
    """Weighted sums `[n, width]` of the inputs or outputs of `module` at the rows' last tokens."""
    total: Tensor | None = None
    with frozen(lm.model):
        for batch in _batches(rows, batch_tokens or default_batch_tokens(lm.device)):
            states = _last_tokens(lm, [row for row, _ in batch], module, side, bank).double()
            if total is None:
                total = states.new_zeros(n, states.shape[1])
            row, request, context = zip(
                *((b, *use) for b, (_, users) in enumerate(batch) for use in users), strict=True
            )
            weight = total.new_tensor([weights[c] for c in context])
            share = states[list(row)] * weight[:, None]
            total.index_add_(0, torch.tensor(request, device=total.device), share)
    if total is None:
        raise ValueError("no requests")
    return total


def _last_tokens(lm: LM, rows: list[_Row], module: nn.Module, side: _Side, bank: LaneBank | None) -> Tensor:
    """Run the model as far as needed and read `module` at the last real token of every row, `[len(rows), width]`."""
    ids, real = pad_right([tokens for _, tokens in rows], lm.pad_id, lm.device)
    last = real.sum(1) - 1
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        state = args[0] if side == "input" else output[0] if isinstance(output, tuple) else output
        state = state.reshape(len(rows), -1, state.shape[-1])  # OPT's MLP works on flattened rows
        seen.append(state[torch.arange(len(rows), device=state.device), last.to(state.device)])
        raise _Reached

    register = module.register_forward_pre_hook if side == "input" else module.register_forward_hook
    with lane_rows(bank, [lane for lane, _ in rows]):
        handle = register(hook)
        try:
            lm.model.base_model(input_ids=ids, use_cache=False)
        except _Reached:
            pass
        finally:
            handle.remove()
    return seen[0]
