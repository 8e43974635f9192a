"""Tracing: the scores of every node of every feed-forward matrix for one loss, or for the sum of many.

One batch (a request, or a few) never makes a gradient as large as a matrix: its factors are scored while the backward
pass goes by. Many batches (the whole edit set, as the released code traces) have no thin factors; their gradient is
summed for a group of matrices at a time, and all batches are run once for each group.

Beside the model, a trace holds the graph of one batch above the lowest traced layer, its logits at the labelled
positions, and the summed gradients of a group. Whatever the budget is, it takes one layer's graph and one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kedit.methods.pac.labels import Labelled
from kedit.methods.pac.tracing.capture import finite, stream, token_counts
from kedit.methods.pac.tracing.scores import dense_scores, node_scores
from kedit.methods.pac.tracing.select import Scores, TraceConfig
from kedit.methods.pac.tracing.sites import Site, sites
from kedit.methods.pac.tracing.spans import SpanCost
from kedit.methods.pac.tracing.stacked_scores import StackedScores
from kedit.model.lm import LM
from kedit.runtime.room import TRACING, within

_GROUP = 0.75  # of the budget: the summed gradients; what they leave is the graph's


def trace(
    lm: LM,
    batches: Sequence[Labelled],
    config: TraceConfig,
    targets: Sequence[Site] | None = None,
    stacked: bool | None = None,
) -> Scores:
    """Scores of all nodes for the sum of the batches' losses, at the weights as they are (specs/pac.md 2.4, 7).

    The scope is in the batches: one request for itself, an edit batch, or the edit set in many batches. What hooks add
    to the matrices' outputs (slices in training) counts as weights and gets no gradient.

    Args:
        lm: The model.
        batches: Texts and the tokens wanted in them. What is summed are their losses as they stand: with
            mini-batches of two the released code's, with one batch the mean over all.
        config: What to score, and the memory for it.
        targets: Matrices; by default those of `sites(lm, config.include_gate)`.
        stacked: Whether z-scores are taken of many matrices at once (kedit/methods/pac/tracing/stacked_scores.py);
            None: everywhere but on a CPU.

    Returns:
        Site -> `[M]` float32 on the CPU.

    Raises:
        KeditError: A gradient is not finite, or the model has no gate to include.
        ValueError: No batch.
    """
    if not batches:
        raise ValueError("no batch to trace")
    found = list(targets or sites(lm, config.include_gate))
    one_pass = len(batches) == 1 or config.score == "signed_sum"  # a plain sum of nodes is the sum of the batches'

    stacked = _stacks(lm, config) if stacked is None else stacked

    def run(scale: float, budget: float) -> Scores:
        if one_pass:
            return _factored(lm, batches, found, config, scale, budget, stacked)
        scores: Scores = {}
        for group in _groups(found, _GROUP * budget):
            scores |= _summed(lm, batches, group, config, scale, budget)
        return scores

    def traced(budget: int) -> Scores:
        return finite(lm, lambda scale: run(scale, budget), lambda scores: _flat([scores], found).isfinite().all())

    most = int(config.memory * sum(map(_bytes, found)))
    return _on_cpu([within(lm.room, TRACING, most, traced, _bytes(found[0]))], found)[0]


def trace_each(
    lm: LM,
    batch: Labelled,
    config: TraceConfig,
    targets: Sequence[Site] | None = None,
    stacked: bool | None = None,
) -> list[Scores]:
    """Scores for each text of a batch by itself, as `trace` gives them for a batch of that text alone.

    Texts do not share tokens, so one pass through the model gives the factors of each, where gradients of weights
    could only be their sum. For requests that are traced on the same weights this is faster than one after another.
    The texts go through the model in as many passes, in their order, as the memory of `config` asks for (the scores
    come on top): sort them by length.

    Args:
        lm: The model.
        batch: Texts and the tokens wanted in them, one in each at least. Their weights count within a text.
        config: As in `trace`.
        targets: As in `trace`.
        stacked: As in `trace`.

    Returns:
        One `trace` result for every text.

    Raises:
        KeditError: A gradient is not finite, or the model has no gate to include.
    """
    found = list(targets or sites(lm, config.include_gate))
    budget = config.memory * sum(map(_bytes, found))
    totals = batch.weights.new_zeros(len(batch.ids)).index_add_(0, batch.rows, batch.weights)
    alone = replace(batch, weights=batch.weights / totals[batch.rows])
    stacked = _stacks(lm, config) if stacked is None else stacked
    parts = _parts(lm, alone, found, budget)
    return [one for part in parts for one in _apart(lm, part, found, config, budget, stacked)]


def _apart(
    lm: LM, batch: Labelled, found: list[Site], config: TraceConfig, budget: float, stacked: bool
) -> list[Scores]:
    """Scores of each text, by one pass through the model."""
    counts = {last: token_counts(batch, last) for last in (False, True)}

    def run(scale: float) -> list[Scores]:
        scores: list[Scores] = [{} for _ in counts[False]]
        later = StackedScores()

        def use(site: Site, x: Tensor, s: Tensor) -> None:
            split = counts[site.layer == lm.arch.n_layers - 1]
            for one, mine, own in zip(scores, x.split(split), s.split(split), strict=True):
                if stacked:
                    later.add(one, site, mine, own)
                else:
                    one[site] = node_scores(mine, own, config.score)

        stream(lm, batch, found, use, scale, budget - _logit_bytes(lm, len(batch.labels)))
        later.finish()
        return scores

    return _on_cpu(finite(lm, run, lambda each: _flat(each, found).isfinite().all()), found)


def _parts(lm: LM, batch: Labelled, found: list[Site], budget: float) -> Iterator[Labelled]:
    """The batch in parts of consecutive texts, one at least, each as large as `budget` bytes allow."""
    n_layers = lm.arch.n_layers - min(site.layer for site in found)
    columns: list[list[int]] = [[] for _ in batch.ids]
    for row, col in zip(batch.rows.tolist(), batch.cols.tolist(), strict=True):
        columns[row].append(col)

    def fits(start: int, end: int) -> bool:
        cols = [col for part in columns[start:end] for col in part]
        tokens = (end - start) * (max(cols) + 1)
        # more texts at a time gain less than smaller spans, whose layers run twice, lose
        graph = SpanCost(lm, found[0], n_layers, tokens).bytes(math.ceil(n_layers / 8))
        return graph + _logit_bytes(lm, len(cols)) <= budget

    start = 0
    while start < len(columns):
        end = start + 1
        while end < len(columns) and fits(start, end + 1):
            end += 1
        own = (batch.rows >= start) & (batch.rows < end)
        labels = (batch.rows[own] - start, batch.cols[own], batch.labels[own], batch.weights[own])
        yield Labelled(batch.ids[start:end], *labels)
        start = end


def _factored(
    lm: LM,
    batches: Sequence[Labelled],
    found: list[Site],
    config: TraceConfig,
    scale: float,
    budget: float,
    stacked: bool,
) -> Scores:
    """Scores of each batch from its factors, summed; `stacked` with one batch alone."""
    scores: Scores = {}
    later = StackedScores()

    def use(site: Site, x: Tensor, s: Tensor) -> None:
        if stacked:
            later.add(scores, site, x, s)
            return
        value = node_scores(x, s, config.score)
        scores[site] = scores[site] + value if site in scores else value

    for batch in batches:
        stream(lm, batch, found, use, scale, budget - _logit_bytes(lm, len(batch.labels)))
    later.finish()
    return scores


def _summed(
    lm: LM, batches: Sequence[Labelled], group: list[Site], config: TraceConfig, scale: float, budget: float
) -> Scores:
    """Scores of a group of matrices from their gradients, summed over the batches."""
    sums = {site: torch.zeros(site.depth, site.width, device=lm.device) for site in group}
    left = budget - sum(map(_bytes, group))

    def use(site: Site, x: Tensor, s: Tensor) -> None:
        sums[site].addmm_(x.T, s)

    for batch in batches:
        stream(lm, batch, group, use, scale, left - _logit_bytes(lm, len(batch.labels)))
    return {site: dense_scores(sums.pop(site), config.score) for site in group}


def _groups(found: list[Site], budget: float) -> list[list[Site]]:
    """Matrices that follow each other, at least one and no more than `budget` bytes of gradients at a time."""
    groups: list[list[Site]] = []
    room = 0.0
    for site in found:
        if not groups or _bytes(site) > room:
            groups.append([])
            room = budget
        groups[-1].append(site)
        room -= _bytes(site)
    return groups


def _stacks(lm: LM, config: TraceConfig) -> bool:
    """Whether z-scores are taken of many matrices at once: where launches are waited for."""
    return lm.device.type != "cpu" and config.score == "zscore"


def _flat(each: Sequence[Scores], found: Sequence[Site]) -> Tensor:
    """All scores in a row."""
    return torch.cat([scores[site] for scores in each for site in found])


def _on_cpu(each: Sequence[Scores], found: Sequence[Site]) -> list[Scores]:
    """The scores on the CPU, by one transfer."""
    parts = iter(_flat(each, found).cpu().split([site.width for _ in each for site in found]))
    return [{site: next(parts) for site in found} for _ in each]


def _bytes(site: Site) -> int:
    """Size of the matrix's gradient in float32."""
    return 4 * site.depth * site.width


def _logit_bytes(lm: LM, labels: int) -> int:
    """Logits, their log-probabilities and gradients, which are in memory while the topmost span's graph is."""
    return 3 * 4 * labels * lm.vocab_size
