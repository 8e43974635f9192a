"""How far an edited model has drifted on a text that has nothing to do with its edits: KL(unedited || edited).

Perplexity says whether the edited model likes the text less; this says how much of all that it believes about the next
token has changed, also where the text's own token is as probable as before. The unedited model's distributions are
kept, so the number of positions is bounded: `positions * vocabulary * 4` bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.evaluation.perplexity import Windows
from kedit.forward.logits import default_batch_tokens, frozen, lane_rows, logits_at
from kedit.forward.teacher_forcing import MAX_LOGITS, MAX_NLL
from kedit.model.lm import LM
from kedit.model.tokenization import pad_right
from kedit.runtime import distributed
from kedit.runtime.room import SCORING, in_parts

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas

POSITIONS = 512
"""Positions by default: 101 MB for a vocabulary of 49,152 tokens, 263 MB for 128,256."""

_Row = tuple[int, int]  # lane, number of the window


@dataclass(frozen=True)
class Believed:
    """What the unedited model believes about the next token, position by position.

    Attributes:
        windows: Token ids of each window; all but the first `first` of them are predicted.
        first: Number of the first predicted token of each.
        log_probs: Of each window `[n predicted, vocab]`, float32, on the model's device.
    """

    windows: tuple[tuple[int, ...], ...]
    first: int
    log_probs: tuple[Tensor, ...]

    @property
    def positions(self) -> int:
        """Positions in all."""
        return sum(len(window) - self.first for window in self.windows)


def believed(lm: LM, text: Windows, positions: int = POSITIONS) -> Believed:
    """Reads the first positions of a text, with the weights as they are.

    Args:
        lm: Model and tokenizer.
        text: The text in windows.
        positions: How many tokens are predicted, at most.
    """
    windows, left = [], positions
    for window in text.windows:
        if left > 0:
            windows.append(window[: text.first + left])
            left -= len(windows[-1]) - text.first
    found = []
    with frozen(lm.model):
        for window in windows:
            logits = _logits(lm, [window], text.first, [-1], None)
            found.append(logits.float().log_softmax(-1))
    return Believed(tuple(windows), text.first, tuple(found))


def divergences(
    lm: LM,
    before: Believed,
    lanes: Sequence[int] = (-1,),
    bank: BatchedDeltas | None = None,
    batch_tokens: int | None = None,
    shared: bool = False,
) -> list[float]:
    """Mean over all positions of KL(unedited || edited), in nats, in each lane.

    Args:
        lm: Model and tokenizer, with the weights that are to be measured.
        before: What the unedited model believed.
        lanes: The lanes, -1 for the weights as they are.
        bank: The deltas that `lanes` index.
        batch_tokens: Bound of one batch in padded tokens; None: by device.
        shared: All processes of the run ask for these: each runs a part, and all get all.

    Returns:
        One per lane; a position counts 10,000 at most, which also stands for NaN.
    """
    rows = [(lane, i) for lane in dict.fromkeys(lanes) for i in range(len(before.windows))]
    longest = max(map(len, before.windows))
    most = min((batch_tokens or default_batch_tokens(lm.device)) // longest, MAX_LOGITS // (longest * lm.vocab_size))
    size = max(1, most)
    batches = [rows[at : at + size] for at in range(0, len(rows), size)]

    def run(batch: Sequence[_Row]) -> Tensor:
        windows = [before.windows[i] for _, i in batch]
        logits = _logits(lm, windows, before.first, [lane for lane, _ in batch], bank)
        parts = logits.split([len(window) - before.first for window in windows])
        return torch.stack([_divergence(before.log_probs[i], part) for (_, i), part in zip(batch, parts, strict=True)])

    def padded(batch: Sequence[_Row]) -> int:
        return len(batch) * longest

    with frozen(lm.model):
        own = distributed.share(batches) if shared else batches
        found = [torch.cat(in_parts(lm.room, SCORING, batch, run, padded)) for batch in own]
    sums = [part.tolist() for part in found]
    if shared:
        sums = distributed.gather_shares(sums)
    of_lane = dict.fromkeys(lanes, 0.0)
    for (lane, _), value in zip(rows, [value for part in sums for value in part], strict=True):
        of_lane[lane] += value
    return [of_lane[lane] / before.positions for lane in lanes]


def _logits(
    lm: LM, windows: Sequence[Sequence[int]], first: int, lanes: list[int], bank: BatchedDeltas | None
) -> Tensor:
    """Logits of all predicted tokens, window after window: `[n, vocab]`."""
    ids, _ = pad_right([tuple(window[:-1]) for window in windows], lm.pad_id, lm.device)
    where = [(row, column) for row, window in enumerate(windows) for column in range(first - 1, len(window) - 1)]
    at = torch.tensor(where, device=lm.device)
    with lane_rows(bank, lanes):
        logits, _ = logits_at(lm, ids, at[:, 0], at[:, 1], use_cache=False)
    return logits


def _divergence(before: Tensor, logits: Tensor) -> Tensor:
    """Sum over positions of KL(before || softmax(logits)); `before: [n, vocab]` are log probabilities."""
    terms = before.exp() * (before - logits.float().log_softmax(-1))
    terms = torch.where(before.isneginf(), 0.0, terms)  # what was impossible adds nothing
    return terms.sum(-1).nan_to_num(MAX_NLL).clamp(min=0.0, max=MAX_NLL).sum()
