"""Random text from the model itself, many sequences at once, the same text on every device.

Serves the corpus of the key statistics (`kedit.covariance`) and the context templates (`kedit.keyvalue.contexts`).
Greedy continuations live in `kedit.forward.greedy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.errors import KeditError
from kedit.forward.decoding import Decoding
from kedit.forward.logits import check_lanes, frozen, lane_rows
from kedit.model.lm import LM
from kedit.runtime.room import SAMPLING, in_parts

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas

VERSION = 1  # part of the key of cached samples: raise it when the same seed would give other text
BATCH_SIZE = 128  # SmolLM2, tokens per CPU second: 246 with 64 rows, 283 with 128, 279 with 256
Progress = Callable[[int, int], None]


def sample(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int],
    top_k: int | None = None,
    temperature: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop_at_eos: bool = True,
    batch_size: int = BATCH_SIZE,
    mixed: bool = False,
    progress: Progress | None = None,
    lanes: Sequence[int] | None = None,
    bank: BatchedDeltas | None = None,
) -> list[list[int]]:
    """Continue each prompt with tokens drawn from the model's own distribution.

    Row `i`, step `t` uses entry `(i, t)` of one table of uniform numbers made on the CPU from `seed`, so the
    text depends neither on the device's generator nor on `batch_size` (up to rounding in the model).

    Args:
        lm: Model and tokenizer.
        prompts: Token ids, each at least one; lengths may differ.
        max_new_tokens: New tokens per row, one number or one for each.
        top_k: Draw among the `top_k` most probable tokens only; None: among all.
        temperature: Divides the logits; below 1 the text is tamer.
        seed: Of the draws. With a seed for each row, a row's text does not depend on the other rows.
        stop_at_eos: End a row at the tokenizer's EOS, in a chat at the end of the turn too (kept as its last token).
            Otherwise the row goes on, as in packed training text, with another document.
        batch_size: Rows in one forward pass.
        mixed: Rows of unlike length share batches, which go at the pace of the shortest prompt: fewer passes for a few
            rows. Otherwise only rows of one length do.
        progress: Called with (new tokens so far, new tokens at most).
        lanes: Lane of each prompt, -1 for the unedited model; None where nothing is edited in a lane.
        bank: The deltas that `lanes` index.

    Returns:
        For each prompt its ids followed by the new ones.

    Raises:
        KeditError: A prompt that leaves no room in the model's context.
        ValueError: An empty prompt, or a `top_k` or `temperature` that means nothing.
    """
    if temperature <= 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"sample expects temperature > 0 and top_k >= 1, got {temperature} and {top_k}")
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("sample expects at least one token in every prompt (a BOS or EOS will do)")
    counts = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    longest = max((len(prompt) + count for prompt, count in zip(prompts, counts, strict=True)), default=0)
    if longest > lm.context_length:
        raise KeditError(
            f"sampling needs {longest} tokens of context, but {lm.name} has {lm.context_length}; "
            "ask for fewer new tokens"
        )
    lane_of = [-1] * len(prompts) if lanes is None else list(lanes)
    check_lanes(lane_of, bank, len(prompts))
    draws = _draws(seed, len(prompts), max(counts, default=0))
    eos = {lm.tokenizer.eos_token_id, lm.end_id} - {None} if stop_at_eos else None
    texts = [list(prompt) for prompt in prompts]
    done, total = 0, sum(counts)
    with frozen(lm.model):
        for rows in _batches(prompts, batch_size, mixed):

            def run(rows: Sequence[int], made: int = done) -> None:
                plan = _Plan([tuple(prompts[i]) for i in rows], [counts[i] for i in rows], [lane_of[i] for i in rows])
                for i in rows:
                    texts[i] = list(prompts[i])  # it may be begun again
                for token_ids, live in _continue(lm, plan, draws[list(rows)], top_k, temperature, eos, bank):
                    for row, token in zip(live, token_ids, strict=True):
                        texts[rows[row]].append(token)
                    made += len(live)
                    if progress is not None:
                        progress(made, total)

            in_parts(lm.room, SAMPLING, rows, run)
            done += sum(len(texts[i]) - len(prompts[i]) for i in rows)
    return texts


def _draws(seed: int | Sequence[int], rows: int, steps: int) -> Tensor:
    """Uniform numbers `[rows, steps]` float64: one table from one seed, or a row from each."""
    if isinstance(seed, int):
        return torch.rand(rows, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if len(seed) != rows:
        raise ValueError(f"{len(seed)} seeds for {rows} rows")
    return torch.cat([torch.zeros(0, steps, dtype=torch.float64), *(_draws(one, 1, steps) for one in seed)])


def _batches(prompts: Sequence[Sequence[int]], size: int, mixed: bool) -> Iterator[list[int]]:
    """Row numbers in batches of equal length (of like length where `mixed`), as even as possible."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    groups = [order] if mixed and order else [list(g) for _, g in groupby(order, key=lambda row: len(prompts[row]))]
    for rows in groups:
        width = math.ceil(len(rows) / math.ceil(len(rows) / size))
        for start in range(0, len(rows), width):
            yield rows[start : start + width]


@dataclass(frozen=True)
class _Plan:
    """A batch: prompts, how many tokens to draw after each, and their lanes."""

    prompts: list[tuple[int, ...]]
    counts: list[int]
    lanes: list[int]


def _continue(
    lm: LM,
    plan: _Plan,
    draws: Tensor,
    top_k: int | None,
    temperature: float,
    eos: set[int | None] | None,
    bank: BatchedDeltas | None,
) -> Iterator[tuple[list[int], list[int]]]:
    """Continue the rows of a batch with the uniform numbers `draws: [n, steps]`.

    All rows go at the pace of the shortest prompt; the longer ones are given their own tokens until these end. So
    there is no padding, and no mask to pay for.

    Yields:
        For each step the new tokens and the rows they belong to; rows that ended are dropped.
    """
    fed = min(len(prompt) for prompt in plan.prompts)
    live = [row for row, count in enumerate(plan.counts) if count]
    if not live:
        return
    longest = max(len(plan.prompts[row]) + plan.counts[row] for row in live)
    texts = Decoding(lm, [plan.prompts[row][:fed] for row in live], longest)
    table = _aligned([draws[row] for row in live], [len(plan.prompts[row]) for row in live], longest).to(lm.device)
    ids: Tensor | None = None  # [len(live), 1]
    while live:
        with lane_rows(bank, [plan.lanes[row] for row in live]):
            logits = texts.next_logits(ids)
        steps = [fed - len(plan.prompts[row]) for row in live]  # negative where the prompt goes on
        drawing = [i for i, step in enumerate(steps) if step >= 0]
        if len(drawing) == len(live):
            token = _draw(logits / temperature, table[:, fed], top_k)
            values = token.tolist()
        else:
            values = [0 if step >= 0 else plan.prompts[row][fed] for row, step in zip(live, steps, strict=True)]
            if drawing:
                found = _draw(logits[drawing] / temperature, table[drawing, fed], top_k).tolist()
                for i, value in zip(drawing, found, strict=True):
                    values[i] = value
            token = torch.tensor(values, device=lm.device)
        if drawing:
            yield [values[i] for i in drawing], [live[i] for i in drawing]
        fed += 1
        ended = [step + 1 == plan.counts[row] for row, step in zip(live, steps, strict=True)]
        if eos is not None:
            ended = [e or (step >= 0 and v in eos) for e, step, v in zip(ended, steps, values, strict=True)]
        ids = token.unsqueeze(1)
        if any(ended):
            keep = [i for i, over in enumerate(ended) if not over]
            live = [live[i] for i in keep]
            index = torch.tensor(keep, dtype=torch.long, device=lm.device)
            ids, table = ids[index], table[index]
            texts.choose(index)


def _aligned(draws: Sequence[Tensor], lengths: Sequence[int], width: int) -> Tensor:
    """The numbers by the column of the token that they draw, `[n, width]` float32, so that a step takes one column.

    Args:
        draws: Of each row, `[steps]` float64.
        lengths: Tokens of each prompt, the column of its first number.
        width: Columns.
    """
    table = torch.zeros(len(draws), width)
    for row, (numbers, length) in enumerate(zip(draws, lengths, strict=True)):
        own = numbers[: width - length]
        table[row, length : length + len(own)] = own.float()
    return table


def _draw(logits: Tensor, draws: Tensor, top_k: int | None) -> Tensor:
    """Inverse of the cumulative distribution at `draws: [n]`: one token id per row of `logits: [n, vocab]`.

    Unlike `torch.multinomial` this needs one random number per row, not one per token of the vocabulary:
    on a CPU 29 ms instead of 133 ms for 128 rows and 49k tokens.
    """
    logits = logits.float()
    index = None
    if top_k is not None and top_k < logits.shape[-1]:
        logits, index = logits.topk(top_k)
    cumulative = logits.softmax(-1).cumsum(-1)
    at = draws.to(cumulative).unsqueeze(1) * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, at, right=True).clamp(max=logits.shape[-1] - 1)
    return (choice if index is None else index.gather(1, choice)).squeeze(1)
