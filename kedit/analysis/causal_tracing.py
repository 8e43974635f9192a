"""Causal tracing over facts: which class a token is of, and averages with intervals over facts.

The passes are in `kedit.causal_tracing`; tables and files in `causal_tracing_report`, drawings in
`causal_tracing_figure`, beside this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kedit.causal_tracing import Fact, FactTrace, Part, Peak, first_inner, peak_of
from kedit.results.intervals import Floats, percentile_interval, resampled_means

CLASSES = ("subject_first", "subject_middle", "subject_last", "next", "further", "last")
"""The tokens of the paper's heat map, from top to bottom."""

RESAMPLES = 2000


def token_class(fact: Fact, token: int) -> str | None:
    """The class of a token of a prompt; each has one. None before the subject, where nothing can change.

    A subject of one token is `subject_last`. So is a subject's last token that ends the prompt; the one token that
    follows a subject there is `last`.
    """
    if token < fact.first:
        return None
    if token == fact.last:
        return "subject_last"
    if token < fact.last:
        return "subject_first" if token == fact.first else "subject_middle"
    if token == len(fact.ids) - 1:
        return "last"
    return "next" if token == fact.last + 1 else "further"


@dataclass(frozen=True)
class Average:
    """The average indirect effect (AIE) of one part over facts, layer by layer.

    Attributes:
        mean: Class of tokens -> means over the facts that have such tokens, `[n_layers]`.
        low: The lower ends of their 95 % bootstrap intervals over facts.
        high: The upper ends.
        n: How many facts have such tokens.
        peak: Of the means at the subject's last token.
        inner: The same without the windows that hold layer 0: what `layers: auto` goes by.
    """

    mean: dict[str, Floats]
    low: dict[str, Floats]
    high: dict[str, Floats]
    n: dict[str, int]
    peak: Peak
    inner: Peak


def average(traces: Sequence[FactTrace], part: Part, window: int, resamples: int = RESAMPLES, seed: int = 0) -> Average:
    """The averages of one part. A fact counts once, however many tokens of a class it has.

    Args:
        traces: Of some facts, at all their tokens.
        part: What was restored.
        window: Layers that were restored together.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    n_layers = traces[0].restored[part].shape[1]
    values = np.full((len(traces), len(CLASSES), n_layers), np.nan)
    for i, found in enumerate(traces):
        effect = found.effect(part).numpy()
        classes = [token_class(found.fact, token) for token in found.tokens]
        for place, name in enumerate(CLASSES):
            own = [row for row, of in zip(effect, classes, strict=True) if of == name]
            if own:
                values[i, place] = np.mean(own, axis=0)
    drawn = resampled_means(values.reshape(len(traces), -1), resamples, seed).reshape(-1, len(CLASSES), n_layers)
    at_subject = values[:, CLASSES.index("subject_last")]
    first = first_inner(n_layers, window)
    peaks = (peak_of(at_subject, low, resamples, seed) for low in (0, first))
    result = Average({}, {}, {}, {}, *peaks)
    for place, name in enumerate(CLASSES):
        there = ~np.isnan(values[:, place, 0])
        if not there.any():
            continue
        ends = [percentile_interval(drawn[:, place, layer]) for layer in range(n_layers)]
        result.mean[name] = values[there, place].mean(0)
        result.low[name], result.high[name] = np.array(ends).T
        result.n[name] = int(there.sum())
    return result


def total_effects(traces: Sequence[FactTrace]) -> Floats:
    """p clean - p corrupted of each fact: all that restoring could give back."""
    return np.array([found.clean - found.corrupted for found in traces])
