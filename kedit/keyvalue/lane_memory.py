"""How much memory the optimisation of one v* takes, and so how many fit side by side."""

from __future__ import annotations

from collections.abc import Callable

from kedit.keyvalue.optimization import ValueOptimization
from kedit.model.lm import LM
from kedit.runtime.live_peak import LivePeak

USABLE = 0.85  # of free memory: the allocator's blocks are larger than what is in them
SUFFIX, PREFIX, LABELS = 16, 32, 3  # tokens of a row that run anew, tokens before them, labels: more than usual ones


def lane_bytes(lm: LM, rows: int, d_in: int) -> int:
    """Most bytes of a lane of short prompts: what a backward pass keeps of every layer, and log-probabilities.

    A generous estimate: SmolLM2 takes a third of it for CounterFact's prompts (docs/methods/memit.md, "Limits").

    Args:
        lm: The model.
        rows: Rewriting rows and the KL row.
        d_in: Width of the MLP's keys.
    """
    layer = SUFFIX * (10 * lm.d_model + 5 * d_in) + PREFIX * 4 * lm.d_model
    vocab = lm.model.config.get_text_config().vocab_size
    return 4 * rows * (lm.arch.n_layers * layer + 5 * LABELS * vocab)


def lanes_that_fit(usual: int, free: int | None, each: int) -> int:
    """`usual`, or as many lanes of `each` bytes as `free` bytes hold, but at least one."""
    return usual if free is None else max(1, min(usual, free // each))


def measured_lanes(lm: LM, make: Callable[[int], ValueOptimization], free: int, most: int) -> tuple[int, int]:
    """How many lanes `free` bytes hold, by what a step of one lane and of two takes.

    Nothing of these steps is kept.

    Args:
        lm: The model.
        make: Gives an optimisation of so many lanes: of the requests with the longest texts.
        free: Bytes that may be taken.
        most: Lanes that are asked for.

    Returns:
        Lanes, at least one, and the bytes of each.
    """
    peaks: list[int] = []
    for n in (1, 2):
        with LivePeak([*lm.model.parameters(), *lm.model.buffers()]) as live:
            make(n).loss().backward()
        peaks.append(live.peak)
    each = max(1, peaks[1] - peaks[0])
    return lanes_that_fit(most, max(0, int(USABLE * free) - (peaks[0] - each)), each), each
