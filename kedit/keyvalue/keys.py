"""Keys and hidden states at the subject's last token, for many requests at once, on whatever the weights are now.

What the multi-layer methods (MEMIT, EMMET, ...) read again at every layer, with the changes made so far. A row ends
at the subject's last token, since a causal decoder's states there cannot depend on what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kedit.forward.activations import Row, Side, read
from kedit.forward.logits import check_lanes
from kedit.forward.replay import Role, Site, site_module
from kedit.model.tokenization import encode_subject

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas
    from kedit.model.lm import LM
    from kedit.request import EditRequest


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
    bank: BatchedDeltas | None = None,
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
        KeditError: A request has no subject, no token covers it, or a text is longer than the model's context.
    """
    if len(weights) != len(contexts):
        raise ValueError(f"{len(weights)} weights for {len(contexts)} contexts")
    module = lm.arch.module(lm.model, "mlp_out", layer)
    rows = _rows(lm, requests, contexts, lanes, bank)
    return _sums(lm, rows, weights, len(requests), module, "input", bank, batch_tokens)


def hidden_states(
    lm: LM,
    requests: Sequence[EditRequest],
    layer: int,
    bank: BatchedDeltas | None = None,
    lanes: Sequence[int] | None = None,
    batch_tokens: int | None = None,
    role: Role = "output",
) -> Tensor:
    """State of `layer` at the subject's last token of the bare prompt: the residual stream that leaves it, MEMIT's h.

    Args:
        lm: As in `mean_keys`, and so are those that are not named here.
        requests: As there.
        layer: The layer.
        bank: As there.
        lanes: As there.
        batch_tokens: As there.
        role: Which state: that stream, or the output of the layer's attention or of its `mlp_out` (PMET).

    Returns:
        `[n, d_model]`, float64.
    """
    rows = _rows(lm, requests, ["{}"], lanes, bank)
    module = site_module(lm, Site(role, layer))
    return _sums(lm, rows, [1.0], len(requests), module, "output", bank, batch_tokens)


_Users = list[tuple[int, int]]  # (request, context) that read from a row


def _rows(
    lm: LM,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    lanes: Sequence[int] | None,
    bank: BatchedDeltas | None,
) -> dict[Row, _Users]:
    """What has to be run: tokens up to the subject's last one. Tokenised with the target, as the rows of v* are."""
    lane_of = [-1] * len(requests) if lanes is None else list(lanes)
    check_lanes(lane_of, bank, len(requests))
    rows: dict[Row, _Users] = {}
    for i, (r, lane) in enumerate(zip(requests, lane_of, strict=True)):
        for c, context in enumerate(contexts):
            t = encode_subject(lm, r.prompt, r.named(), r.target_new, context, r.name, r.joiner)
            rows.setdefault((lane, t.ids[: t.subject_last + 1]), []).append((i, c))
    return rows


def _sums(
    lm: LM,
    rows: dict[Row, _Users],
    weights: Sequence[float],
    n: int,
    module: nn.Module,
    side: Side,
    bank: BatchedDeltas | None,
    batch_tokens: int | None,
) -> Tensor:
    """Weighted sums `[n, width]` of the inputs or outputs of `module` at the rows' last tokens."""
    total: Tensor | None = None
    for part, states in read(lm, rows, module, side, bank, batch_tokens):
        last = torch.tensor([len(tokens) - 1 for _, tokens in part], device=states.device)
        ends = states[torch.arange(len(part), device=states.device), last].double()
        if total is None:
            total = ends.new_zeros(n, ends.shape[1])
        row, request, context = zip(*((b, *use) for b, key in enumerate(part) for use in rows[key]), strict=True)
        weight = total.new_tensor([weights[c] for c in context])
        total.index_add_(0, torch.tensor(request, device=total.device), ends[list(row)] * weight[:, None])
    if total is None:
        raise ValueError("no requests")
    return total
