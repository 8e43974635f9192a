"""A subject with its parts in another order: `shuffled`, and how it is cut, `parts_of`.

Parts are slices of the text itself, so no tokenizer's marks ("Ġ", "▁") and no half of a character can get into
a shuffled subject. What the shuffled subjects are for is in `kedit.data.robust_queries`.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal

from kedit.model.lm import LM

Unit = Literal["token", "word", "character"]

FEW = 5040  # distinct orders up to which all of them are written out; beyond, they are drawn
ATTEMPTS = 50  # draws for each order wanted: repeats are rare among so many


def parts_of(lm: LM, text: str, start: int, end: int, unit: Unit = "token") -> list[str]:
    """Cuts the subject `text[start:end]` into the parts that are shuffled.

    A token or word that begins a word has its space before it, the first one included, so that a shuffled
    subject is the same at the beginning of a prompt and within it. Joined and stripped, the parts are the
    subject.

    Args:
        lm: Whose tokens are parts, for `token`.
        text: The whole prompt: tokens of the subject depend on what stands before it.
        start: Where the subject begins.
        end: Where it ends.
        unit: `token`: tokens, those that share a character together. `word`: what white space separates.
            `character`: characters, accents that stand by themselves with their letter.
    """
    subject = text[start:end]
    if unit == "word":
        return [f" {word}" for word in subject.split()]
    parts: list[str] = []
    if unit == "character":
        for character in subject:
            if parts and unicodedata.combining(character):
                parts[-1] += character
            else:
                parts.append(character)
        return parts
    done = start
    spans = [(max(a, start), min(b, end)) for a, b in lm.offsets(text)[1] if a < end and b > start and b > a]
    for i, (_, stop) in enumerate(spans):
        shared = i + 1 < len(spans) and spans[i + 1][0] < stop  # bytes of one character
        if stop > done and not shared:
            parts.append(text[done:stop])
            done = stop
    if done < end:
        parts.append(text[done:end])
    blank = [i for i, part in enumerate(parts) if not part.strip()]
    for i in reversed(blank):  # a space that is a token by itself goes with what follows
        if i + 1 < len(parts):
            parts[i + 1] = parts[i] + parts[i + 1]
        del parts[i]
    if parts:
        parts[0] = f" {parts[0].lstrip()}"
    return parts


def shuffled(parts: Sequence[str], count: int, random: Random, avoid: Sequence[str] = ()) -> list[str]:
    """At most `count` texts that put `parts` into another order, all different, none equal to the original.

    Orders are counted as those of a multiset (n! / (m_1! m_2! ...)), so that repeated parts end nothing in a
    loop; where there are no more than 5040, all are written out and `count` of them drawn.

    Args:
        parts: See `parts_of`.
        count: Most texts wanted; fewer where fewer exist.
        random: Draws.
        avoid: Further texts that must not come out, compared without regard to white space.
    """
    seen = {_joined(parts), *(" ".join(text.split()) for text in avoid)}
    if orders(parts) <= FEW:
        found = dict.fromkeys(_joined(order) for order in _all(Counter(parts)))
        texts = [text for text in found if text not in seen]
        return random.sample(texts, min(count, len(texts)))
    texts = []
    order = list(parts)
    for _ in range(ATTEMPTS * count):
        if len(texts) == count:
            break
        random.shuffle(order)
        text = _joined(order)
        if text not in seen:
            seen.add(text)
            texts.append(text)
    return texts


def orders(parts: Sequence[str]) -> int:
    """How many distinct orders `parts` have."""
    return math.factorial(len(parts)) // math.prod(math.factorial(n) for n in Counter(parts).values())


def _all(left: Counter[str]) -> Iterator[tuple[str, ...]]:
    """Every distinct order of a multiset, once."""
    if not left.total():
        yield ()
    for part in sorted(part for part, n in left.items() if n):
        left[part] -= 1
        for rest in _all(left):
            yield (part, *rest)
        left[part] += 1


def _joined(parts: Sequence[str]) -> str:
    return " ".join("".join(parts).split())
