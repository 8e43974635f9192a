"""Fluency: how varied a text is that the model writes after a prompt (ROME, MEMIT, REP: "fluency", n-gram entropy).

An edit that breaks the model makes it repeat itself, and the entropy falls. The texts are sampled with a seed per
record, so that before and after an edit the same random numbers are drawn.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kedit.delta.prompts import prompt_for
from kedit.forward.sampling import sample
from kedit.model.lm import LM
from kedit.model.tokenization import asked

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas

TOKENS = 100  # of a text, the prompt's included
TOP_K = 5
WEIGHTS = ((2, 2 / 3), (3, 4 / 3))  # n of the n-grams, and the weight of their entropy
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Words (letters, digits and inner apostrophes) and punctuation marks, one by one, case kept."""
    return WORD.findall(text)


def entropy(words: Sequence[str], n: int) -> float:
    """Shannon entropy of the n-grams of `words`, in bits; 0 where there is none."""
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = counts.total()
    return -sum(c / total * math.log2(c / total) for c in counts.values()) + 0.0


def ngram_entropy(text: str) -> float:
    """Mean of 2/3 of the bigrams' and 4/3 of the trigrams' entropy over words, in bits."""
    words = words_of(text)
    return sum(weight * entropy(words, n) for n, weight in WEIGHTS) / len(WEIGHTS)


def sampled_texts(
    lm: LM,
    prompts: Sequence[str],
    seeds: Sequence[str],
    lanes: Sequence[int] | None = None,
    bank: BatchedDeltas | None = None,
) -> list[str | None]:
    """A text of 100 tokens that begins with each prompt, the prompt included.

    In a chat it is the prompt and the assistant's answer, with a space between, and ends where the answer does.

    Args:
        lm: Model and tokenizer.
        prompts: What the texts begin with.
        seeds: Anything that names a row's random numbers, e.g. its case id.
        lanes: Lane of each prompt, -1 for the unedited model.
        bank: The deltas that `lanes` index.

    Returns:
        A text per prompt; None for a prompt that leaves no room for one.
    """
    rows = [lm.encode(prompt) for prompt in prompts]
    lane_of = [-1] * len(rows) if lanes is None else list(lanes)
    total = min(TOKENS, lm.context_length)
    special = set(lm.tokenizer.all_special_ids)
    results: list[str | None] = [None] * len(rows)
    chosen = [i for i, row in enumerate(rows) if len(row) < total]
    if lm.chat is not None:  # there is more in the context than the text
        chosen = [i for i in chosen if len(asked(lm, prompts[i])) + total - len(rows[i]) <= lm.context_length]
    whole = [asked(lm, prompt_for(lm, bank, lane_of[i], prompts[i], total - len(rows[i]))) for i in chosen]
    texts = sample(
        lm,
        whole,
        [total - len(rows[i]) for i in chosen],
        top_k=TOP_K,
        stop_at_eos=lm.chat is not None,  # else texts of one length, or short ones would look monotonous
        seed=[_number(seeds[i]) for i in chosen],
        mixed=True,
        lanes=[lane_of[i] for i in chosen],
        bank=bank,
    )
    for i, before, ids in zip(chosen, whole, texts, strict=True):
        new = ids[len(before) :]  # what an edit puts before the prompt is no part of the text
        parts = [(*rows[i], *new)] if lm.chat is None else [rows[i], new]
        said = [lm.decode([token for token in part if token not in special]) for part in parts]
        results[i] = said[0] if lm.chat is None else f"{said[0]} {lm.chat.cut(said[1])}"
    return results


def _number(seed: str) -> int:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big")
