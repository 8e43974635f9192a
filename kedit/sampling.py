"""Random text from the model itself, many sequences at once, the same text on every device.

Serves the corpus of the key statistics (`kedit.stats`) and the context templates (`kedit.contexts`).
Greedy continuations live in `kedit.generate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from kedit.errors import KeditError
from kedit.forward import check_lanes, frozen, lane_rows, logits_at
from kedit.lm import LM

if TYPE_CHECKING:
    from kedit.lanes import LaneBank

VERSION = 1  # part of the key of cached samples: raise it when the same seed would give other text
BATCH_SIZE = 128  # SmolLM2, tokens per CPU second: 246 with 64 rows, 283 with 128, 279 with 256
Progress = Callable[[int, int], None]


def sample(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    top_k: int | None = None,
    temperature: float = 1.0,
    seed: int | Sequence[int] = 0,
    stop_at_eos: bool = True,
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    lanes: Sequence[int] | None = None,
    bank: LaneBank | None = None,
) -> list[list[int]]:
    """Continue each prompt with tokens drawn from the model's own distribution.

    Row `i`, step `t` uses entry `(i, t)` of one table of uniform numbers made on the CPU from `seed`, so the
    text depends neither on the device's generator nor on `batch_size` (up to rounding in the model).

    Args:
        lm: Model and tokenizer.
        prompts: Token ids, each at least one; lengths may differ. Rows of one length share batches.
        max_new_tokens: New tokens per row.
        top_k: Draw among the `top_k` most probable tokens only; None: among all.
        temperature: Divides the logits; below 1 the text is tamer.
        seed: Of the draws. With a seed for each row, a row's text does not depend on the other rows.
        stop_at_eos: End a row at the tokenizer's EOS (kept as its last token). Otherwise the row goes on, as
            in packed training text, with another document.
        batch_size: Rows in one forward pass.
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
        raise ValueError(f"sample wants temperature > 0 and top_k >= 1, got {temperature} and {top_k}")
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("sample wants at least one token in every prompt (a BOS or EOS will do)")
    longest = max(map(len, prompts), default=0) + max_new_tokens
    if longest > lm.context_length:
        raise KeditError(
            f"sampling needs {longest} tokens of context, but {lm.name} has {lm.context_length}; "
            "ask for fewer new tokens"
        )
    lane_of = [-1] * len(prompts) if lanes is None else list(lanes)
    check_lanes(lane_of, bank, len(prompts))
    draws = _draws(seed, len(prompts), max_new_tokens)
    eos = lm.tokenizer.eos_token_id if stop_at_eos else None
    texts = [list(prompt) for prompt in prompts]
    done, total = 0, len(prompts) * max_new_tokens
    with frozen(lm.model):
        for rows in _batches(prompts, batch_size):
            ids = torch.tensor([texts[row] for row in rows], device=lm.device)
            own = [lane_of[row] for row in rows]
            for token_ids, live in _continue(lm, ids, draws[rows], top_k, temperature, eos, own, bank):
                for row, token in zip(live, token_ids, strict=True):
                    texts[rows[row]].append(token)
                if progress is not None:
                    done += len(rows)
                    progress(done, total)
    return texts


def _draws(seed: int | Sequence[int], rows: int, steps: int) -> Tensor:
    """Uniform numbers `[rows, steps]` float64: one table from one seed, or a row from each."""
    if isinstance(seed, int):
        return torch.rand(rows, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if len(seed) != rows:
        raise ValueError(f"{len(seed)} seeds for {rows} rows")
    return torch.cat([torch.zeros(0, steps, dtype=torch.float64), *(_draws(one, 1, steps) for one in seed)])


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Row numbers in batches of equal length, as even as possible: no padding, so no mask to pay for."""
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
        width = math.ceil(len(rows) / math.ceil(len(rows) / size))
        for start in range(0, len(rows), width):
            yield rows[start : start + width]


def _continue(
    lm: LM,
    ids: Tensor,
    draws: Tensor,
    top_k: int | None,
    temperature: float,
    eos: int | None,
    lanes: list[int],
    bank: LaneBank | None,
) -> Iterator[tuple[list[int], list[int]]]:
    """Continue the rows of `ids: [n, T]` with the uniform numbers `draws: [n, steps]`, each in its lane.

    Yields:
        For each step the new tokens and the rows they belong to; rows that ended are dropped.
    """
    live = torch.arange(len(ids))
    cache = DynamicCache(config=lm.model.config)
    for step in range(draws.shape[1]):
        every = torch.arange(len(ids))
        with lane_rows(bank, [lanes[row] for row in live.tolist()]):
            logits, _ = logits_at(lm, ids, every, torch.full_like(every, -1), past_key_values=cache, use_cache=True)
        token = _draw(logits / temperature, draws[live, step], top_k)
        yield token.tolist(), live.tolist()
        ids = token.unsqueeze(1)
        if eos is not None and bool((token == eos).any()):
            keep = (token != eos).nonzero().squeeze(1)
            if not len(keep):
                return
            ids, live = ids[keep], live[keep.cpu()]
            cache.batch_select_indices(keep)


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
    at = draws.to(logits.device, torch.float32).unsqueeze(1) * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, at, right=True).clamp(max=logits.shape[-1] - 1)
    return (choice if index is None else index.gather(1, choice)).squeeze(1)
