"""Greedy generation in large batches, with a key-value cache and private lanes.

Says what Hugging Face's `generate(do_sample=False)` says on one prompt at a time, many prompts at once.
Sampling and beams do not live here. In a chat the prompts are the user's, and a continuation is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.delta.prompts import prompt_for
from kedit.errors import shown
from kedit.forward.decoding import Decoding, default_batch_tokens
from kedit.forward.logits import check_lanes, frozen, lane_rows
from kedit.model.tokenization import TooLong, encode, in_context
from kedit.runtime import distributed
from kedit.runtime.room import GENERATION, in_parts

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas
    from kedit.model.lm import LM


def greedy(
    lm: LM,
    prompts: Sequence[str],
    max_new_tokens: int = 16,
    lanes: Sequence[int] | None = None,
    bank: BatchedDeltas | None = None,
    stop: str = "",
    batch_tokens: int | None = None,
    shared: bool = False,
    frames: Sequence[str] | None = None,
) -> list[str]:
    """The most probable continuation of each prompt, token by token.

    Args:
        lm: Model and tokenizer.
        prompts: Texts to continue; equal ones (of one lane) are continued once.
        max_new_tokens: Tokens after which a continuation ends at the latest.
        lanes: Lane of each prompt, -1 for the unedited model; None where nothing is edited in a lane.
        bank: The deltas that `lanes` index.
        stop: Characters that end a continuation, e.g. `"\\n"`; the first of them and what follows is cut off.
        batch_tokens: Bound of one batch in padded tokens, continuation included; None: by device and memory.
        shared: All processes of the run continue these prompts: each does a part of the batches, and all get all.
        frames: Of each prompt a text with one {} that it stands in, with what edits put before it, e.g. an instruction;
            "" for none.

    Returns:
        One text per prompt as it follows the prompt (most begin with a space; those of the prompt's end do not
            count as the prompt's), without the token that ends the text or the assistant's turn.

    Raises:
        TooLong: A prompt that leaves no room in the model's context; names the prompt.
    """
    lane_of = [-1] * len(prompts) if lanes is None else list(lanes)
    check_lanes(lane_of, bank, len(prompts))
    rows = []
    for prompt, lane, frame in zip(prompts, lane_of, frames or [""] * len(prompts), strict=True):
        asked = framed(lm, frame, prompt_for(lm, bank, lane, prompt, max_new_tokens + len(frame)))
        rows.append(prompt_ids(lm, asked, max_new_tokens, f"prompt {shown(prompt)}"))
    new = greedy_ids(lm, rows, max_new_tokens, lanes, bank, stop, batch_tokens, shared)
    texts = []
    for row, ids in zip(rows, new, strict=True):
        head = lm.tokenizer.decode(row, skip_special_tokens=True)
        text = lm.tokenizer.decode([*row, *ids], skip_special_tokens=True)[len(head) :]
        texts.append(_cut(text if lm.chat is None else lm.chat.cut(text), stop))
    return texts


def framed(lm: LM, frame: str, prompt: str) -> str:
    """A prompt in a text with one {}; as it is where that is "", or where nothing can stand before it (`own_bos`)."""
    return in_context(lm, frame, prompt.rstrip(" ")) if frame else prompt


def prompt_ids(lm: LM, prompt: str, max_new_tokens: int, name: str = "") -> tuple[int, ...]:
    """The tokens that a prompt is continued from: without spaces at its end, which belong to the word that follows.

    Raises:
        TooLong: They leave no room for `max_new_tokens` in the model's context; says `name`, or the prompt.
    """
    name = name or f"prompt {shown(prompt)}"
    ids = encode(lm, prompt.rstrip(" ") or prompt, name=name).ids
    if len(ids) + max_new_tokens > lm.context_length:
        raise TooLong(
            f"{name}: {len(ids)} tokens and {max_new_tokens} new ones are more than the "
            f"{lm.context_length} of the model's context; shorten the prompt or lower max_new_tokens"
        )
    return ids


def greedy_ids(
    lm: LM,
    rows: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    lanes: Sequence[int] | None = None,
    bank: BatchedDeltas | None = None,
    stop: str = "",
    batch_tokens: int | None = None,
    shared: bool = False,
) -> list[list[int]]:
    """`greedy` on token ids: the new ids of each row, the end-of-text token or the stop's token included."""
    lane_of = [-1] * len(rows) if lanes is None else list(lanes)
    check_lanes(lane_of, bank, len(rows))
    keys = list(zip(rows, lane_of, strict=True))
    todo = sorted(dict.fromkeys(keys), key=lambda key: -len(key[0]))
    ends = _Ends(lm, stop)
    budget = batch_tokens or default_batch_tokens(lm)
    if shared and batch_tokens is None:  # a batch for each process at least
        budget = min(budget, -(-sum(len(ids) + max_new_tokens for ids, _ in todo) // distributed.world_size()))
    batches = list(_cut_batches(todo, max_new_tokens, budget))

    def run(batch: Sequence[tuple[tuple[int, ...], int]]) -> list[list[int]]:
        return _continue(lm, batch, max_new_tokens, bank, ends)

    def size(batch: Sequence[tuple[tuple[int, ...], int]]) -> int:
        return len(batch) * (len(batch[0][0]) + max_new_tokens)

    with frozen(lm.model):
        own = distributed.share(batches) if shared else batches
        new = [in_parts(lm.room, GENERATION, batch, run, size) for batch in own]
    found = [[ids for part in parts for ids in part] for parts in new]
    if shared:
        found = distributed.gather_shares(found)
    pairs = zip(batches, found, strict=True)
    done = {key: ids for batch, each in pairs for key, ids in zip(batch, each, strict=True)}
    return [done[key] for key in keys]


class _Ends:
    """Which token ids end a continuation; looks at each id once."""

    def __init__(self, lm: LM, stop: str) -> None:
        config = getattr(lm.model, "generation_config", None)
        eos = getattr(config, "eos_token_id", None)
        ids = [lm.tokenizer.eos_token_id, lm.end_id, *(eos if isinstance(eos, list) else [eos])]
        self._tokenizer = lm.tokenizer
        self._stop = stop
        self._known: dict[int, bool] = {int(i): True for i in ids if i is not None}

    def __call__(self, token: int) -> bool:
        if token not in self._known:
            self._known[token] = _has_any(self._tokenizer.decode([token]), self._stop)
        return self._known[token]


def _continue(
    lm: LM, batch: Sequence[tuple[tuple[int, ...], int]], max_new: int, bank: BatchedDeltas | None, ends: _Ends
) -> list[list[int]]:
    """Continue one batch. Finished rows leave it as soon as they are half of it.

    The host reads the tokens of every step, in one transfer: it must know which rows have ended, and a batch that is
    large enough to keep a device busy hides the wait.
    """
    new: list[list[int]] = [[] for _ in batch]
    live = list(range(len(batch)))  # batch row -> index into `new`
    rows = [ids for ids, _ in batch]
    texts = Decoding(lm, rows, max(map(len, rows)) + max_new)
    ids: Tensor | None = None  # [len(live), 1]
    while live:
        with lane_rows(bank, [batch[i][1] for i in live]):
            finished = [False] * len(live)
            while 2 * sum(finished) < len(live):
                ids = texts.next_logits(ids).argmax(-1, keepdim=True)
                for row, value in enumerate(ids.flatten().tolist()):
                    if not finished[row]:
                        new[live[row]].append(value)
                        finished[row] = len(new[live[row]]) >= max_new or ends(value)
        keep = [row for row, over in enumerate(finished) if not over]
        live = [live[row] for row in keep]
        if live and ids is not None:
            index = torch.tensor(keep, device=ids.device)
            ids = ids[index]
            texts.choose(index)
    return new


def _cut_batches(
    rows: list[tuple[tuple[int, ...], int]], max_new: int, budget: int
) -> Iterator[list[tuple[tuple[int, ...], int]]]:
    """Cut rows, longest first, into batches of at most `budget` tokens with their continuations."""
    start = 0
    while start < len(rows):
        size = max(1, budget // (len(rows[start][0]) + max_new))
        yield rows[start : start + size]
        start += size


def _has_any(text: str, characters: str) -> bool:
    return any(c in text for c in characters)


def _cut(text: str, stop: str) -> str:
    return text[: min((text.find(c) for c in stop if c in text), default=len(text))]
