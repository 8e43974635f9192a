"""Teacher-forced log probabilities of many (prompt, answer) pairs, batched so that little is computed twice.

One row of a batch is a prompt with an answer after it. Rows that are equal, or the beginning of another row
of the same lane, are run once; rows are sorted by length, so that little padding is computed; the output
head runs only at the positions that are read, and no logits outlive their batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.forward.logits import default_batch_tokens, frozen, lane_rows, logits_at
from kedit.model.tokenization import pad_right
from kedit.runtime import distributed
from kedit.runtime.room import SCORING, in_parts

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas
    from kedit.model.lm import LM

Progress = Callable[[int, int], None]  # called with (rows done, rows in all)

MAX_LOGITS = 2**27  # numbers in one batch's logits: half a gigabyte in float32
MAX_NLL = 1e4  # stands for "impossible": what a model that answers NaN or infinity gives to every token


@dataclass(frozen=True, slots=True)
class Span:
    """One answer after one prompt.

    Attributes:
        lane: Lane of the row, -1 for the unedited model.
        ids: The row to run: the prompt's tokens and the answer's but its last.
        answer: The answer's tokens.
    """

    lane: int
    ids: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def columns(self) -> range:
        """Positions whose logits predict the answer's tokens."""
        return range(len(self.ids) - len(self.answer), len(self.ids))


def read(
    lm: LM,
    spans: Sequence[Span],
    bank: BatchedDeltas | None = None,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    shared: bool = False,
) -> list[tuple[list[float], tuple[int, ...]]]:
    """Run the spans' rows and look their answers up.

    Args:
        lm: Model and tokenizer.
        spans: What to read, in any order.
        bank: The deltas that the spans' lanes index.
        batch_tokens: Bound of one batch in padded tokens; None: by device.
        progress: Called after every batch.
        shared: All processes of the run read these spans; each runs every so manieth batch.

    Returns:
        For each span, in order: -log p of every token of its answer, and the argmax ids at their positions.
    """
    rows = _hosts(spans)
    batches = list(_batches(rows, batch_tokens or default_batch_tokens(lm.device), spans, lm.vocab_size))
    parts: list[tuple[Tensor, Tensor]] = []  # left on the device until all batches are under way
    done = 0

    def run(batch: Sequence[_Row]) -> tuple[Tensor, Tensor]:
        return _forward(lm, spans, batch, bank)

    with frozen(lm.model):
        for batch in distributed.share(batches) if shared else batches:
            nll, top = zip(*in_parts(lm.room, SCORING, batch, run, _padded), strict=True)
            parts.append((torch.cat(nll), torch.cat(top)))
            done += len(batch) * (distributed.world_size() if shared else 1)
            if progress is not None:
                progress(min(done, len(rows)), len(rows))
    found = [(nll.tolist(), top.tolist()) for nll, top in parts]
    if shared:
        found = distributed.gather_shares(found)
    results: list[tuple[list[float], tuple[int, ...]]] = [([], ())] * len(spans)
    for batch, (nlls, tops) in zip(batches, found, strict=True):
        start = 0
        for i in (i for _, members in batch for i in members):
            end = start + len(spans[i].answer)
            results[i] = (nlls[start:end], tuple(tops[start:end]))
            start = end
    return results


_Row = tuple[Span, list[int]]  # the span whose ids are run, and every span that reads from the row


def _hosts(spans: Sequence[Span]) -> list[_Row]:
    """Spans grouped into the rows to run, longest first.

    Sorted, a row that is the beginning of another stands right before one such; it needs no row of its own,
    because a causal model says the same at a position whatever follows.
    """
    order = sorted(range(len(spans)), key=lambda i: (spans[i].lane, spans[i].ids), reverse=True)
    rows: list[_Row] = []
    for i in order:
        span = spans[i]
        if rows and rows[-1][0].lane == span.lane and rows[-1][0].ids[: len(span.ids)] == span.ids:
            rows[-1][1].append(i)
        else:
            rows.append((span, [i]))
    return sorted(rows, key=lambda row: len(row[0].ids), reverse=True)


def _batches(rows: list[_Row], batch_tokens: int, spans: Sequence[Span], vocab_size: int) -> Iterator[list[_Row]]:
    """Cut sorted rows into batches of bounded padded tokens and bounded logits."""
    batch: list[_Row] = []
    logits = 0
    for row in rows:
        more = vocab_size * len(set().union(*(spans[i].columns for i in row[1])))
        if batch and ((len(batch) + 1) * len(batch[0][0].ids) > batch_tokens or logits + more > MAX_LOGITS):
            yield batch
            batch, logits = [], 0
        batch.append(row)
        logits += more
    if batch:
        yield batch


def _padded(batch: Sequence[_Row]) -> int:
    return len(batch) * len(batch[0][0].ids)


def _forward(lm: LM, spans: Sequence[Span], batch: Sequence[_Row], bank: BatchedDeltas | None) -> tuple[Tensor, Tensor]:
    """Run one batch: -log p and argmax at every token of every answer, both `[n_tokens]`, on the device."""
    slots: dict[tuple[int, int], int] = {}  # (row, column) -> index into the logits that are computed
    wanted: list[int] = []
    targets: list[int] = []
    for row, (_, members) in enumerate(batch):
        for i in members:
            wanted += [slots.setdefault((row, column), len(slots)) for column in spans[i].columns]
            targets += spans[i].answer
    ids, _ = pad_right([span.ids for span, _ in batch], lm.pad_id, lm.device)
    where = torch.tensor(list(slots), device=lm.device)  # [m, 2]
    with lane_rows(bank, [span.lane for span, _ in batch]):
        logits, _ = logits_at(lm, ids, where[:, 0], where[:, 1], use_cache=False)
    index = torch.tensor(wanted, device=logits.device)
    target = torch.tensor(targets, device=logits.device)
    total = logits.float().logsumexp(-1)  # [m]
    nll = total[index] - logits[index, target].float()
    return nll.nan_to_num(MAX_NLL).clamp(max=MAX_NLL), logits.argmax(-1)[index]
