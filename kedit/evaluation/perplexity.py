"""Perplexity of a text: how surprised a model is by words that have nothing to do with its edits.

It rises when edits break the model (Yang et al., "The Butterfly Effect of Model Editing", 2024). The text is packed:
its tokens in order, cut into windows that see nothing of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

from kedit.errors import KeditError
from kedit.forward.teacher_forcing import Progress, Span, read
from kedit.model.lm import LM

if TYPE_CHECKING:
    from kedit.delta.lanes import BatchedDeltas

_CHARACTERS = 12
"""For each token that is wanted so many characters are tokenised, at first."""

_SPARE = 64
"""Tokens that are left over then, as the last ones are pieces of what was cut through."""

_MOST = 100.0
"""Mean of -log p above which a perplexity would be of no use: it stands for more, and for NaN."""


@dataclass(frozen=True)
class Windows:
    """A text, tokenised and cut.

    Attributes:
        windows: Token ids of each. Where the tokenizer puts a token before texts, each window begins with it.
        first: The first token of a window that is predicted: 1, or more where the tokenizer puts several before a text.
    """

    windows: tuple[tuple[int, ...], ...]
    first: int

    @property
    def predicted(self) -> int:
        """Tokens that are predicted in all."""
        return sum(len(piece) - self.first for piece in self.windows)


def windows_of(lm: LM, text: str, tokens: int, window: int, name: str = "the text") -> Windows:
    """The first tokens of a text in windows.

    Args:
        lm: Whose tokenizer.
        text: The text.
        tokens: How many of its tokens.
        window: Tokens of a window; what is left over makes a shorter one.
        name: Named in errors.

    Raises:
        KeditError: A window is longer than the model's context, or the text has fewer than two tokens.
    """
    if window > lm.context_length:
        most = lm.context_length
        raise KeditError(f"perplexity.window: {window} tokens are more than the {most} of the model's context")
    cut = text[: _CHARACTERS * tokens]
    ids, spans = lm.offsets(cut, name)
    if len(ids) < tokens + _SPARE and len(cut) < len(text):
        ids, spans = lm.offsets(text, name)
    front = next((i for i, (_, end) in enumerate(spans) if end > 0), len(ids))
    start, body = ids[:front], ids[front : front + tokens]
    step, first = window - front, max(front, 1)
    if step < 1 or window < 2:
        raise KeditError(f"perplexity.window: {window} leaves no room for text")
    pieces = [(*start, *body[at : at + step]) for at in range(0, len(body), step)]
    windows = tuple(piece for piece in pieces if len(piece) > first)
    if not windows:
        raise KeditError(f"{name}: it has too few tokens to measure a perplexity on")
    return Windows(windows, first)


def perplexities(
    lm: LM,
    text: Windows,
    lanes: Sequence[int] = (-1,),
    bank: BatchedDeltas | None = None,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    shared: bool = False,
) -> list[float]:
    """exp of the mean of -log p over all predicted tokens of the text, in each lane.

    Args:
        lm: Model and tokenizer, with the weights that are to be measured.
        text: What to read.
        lanes: The lanes, -1 for the weights as they are.
        bank: The deltas that `lanes` index.
        batch_tokens: Bound of one batch in padded tokens; None: by device.
        progress: Called after every batch.
        shared: All processes of the run ask for these: each runs a part, and all get all.

    Returns:
        One per lane; at most exp(100), which also stands for NaN.
    """
    spans = [Span(lane, piece[:-1], piece[text.first :]) for lane in dict.fromkeys(lanes) for piece in text.windows]
    readings = iter(read(lm, spans, bank, batch_tokens, progress, shared))
    found = {}
    for lane in dict.fromkeys(lanes):
        total, n = 0.0, 0
        for _ in text.windows:
            nlls, _tops = next(readings)
            total, n = total + sum(nlls), n + len(nlls)
        found[lane] = exp(min(total / n, _MOST))
    return [found[lane] for lane in lanes]
