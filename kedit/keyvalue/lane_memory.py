"""How much memory the optimisation of one v* takes, and so how many fit side by side."""

from __future__ import annotations

from kedit.model.lm import LM

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
