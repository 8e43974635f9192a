"""Memory of PAC's trace of one batch: the graph of a span of layers, what is captured in it, and the spans' inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kedit.methods.pac.tracing.sites import Site
from kedit.methods.pac.tracing.spans import SpanCost
from kedit.model.lm import LM
from kedit.plan import passes


def trace_bytes(lm: LM, sites: Sequence[Site], rows: int, tokens: int, labels: int, budget: float) -> tuple[int, int]:
    """The most bytes at once with the spans that a run makes, and with those of one layer.

    Args:
        lm: The shape of the model.
        sites: The matrices that are traced.
        rows: Texts of the batch.
        tokens: Tokens of each, with padding.
        labels: Tokens with a loss, of each.
        budget: Bytes that the trace may take.
    """
    layers, site = lm.arch.n_layers - min(s.layer for s in sites), sites[0]
    logits = 12 * rows * labels * lm.vocab_size
    number = rows * tokens * lm.dtype.itemsize

    def peak(size: int) -> int:
        graph = passes.graph(lm, rows, tokens, labels, lm.arch.n_layers - size - 1)
        captured = size * (site.width + site.depth) + (math.ceil(layers / size) - 1) * site.depth
        return graph + number * captured + 4 * sum(s.width for s in sites)

    return peak(SpanCost(lm, site, layers, rows * tokens).size(budget - logits)), peak(1)
