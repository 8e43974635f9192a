"""Which nodes an edit trains: traced at the weights as they are, or those of a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from kedit.lm import LM
from kedit.pac.labels import Labelled
from kedit.pac.select import Scores, Selection, TraceConfig, check_room, select
from kedit.pac.sites import Site, sites
from kedit.pac.tracing import trace


def choose(
    lm: LM, batches: Sequence[Labelled], config: TraceConfig, generator: torch.Generator, scored: bool = False
) -> tuple[Selection, Scores | None]:
    """T+ and T- of some requests.

    Args:
        lm: The model, with the changes at which to trace.
        batches: The requests; what is traced is the sum of the batches' losses.
        config: How.
        generator: Draws where `pick` is random.
        scored: Trace also where the choice does not need it.

    Returns:
        The nodes, and the scores of all nodes (None where nothing was traced).

    Raises:
        KeditError: A gradient is not finite, or a matrix has too few nodes.
    """
    found = sites(lm, config.include_gate)
    if config.pick != "all" and config.mode == "per_matrix":
        check_room(found, config.nodes, config.bottom)
    scores = trace(lm, batches, config, found) if scored or config.pick == "traced" else None
    if config.pick == "random":
        return Selection.random(found, config.nodes, config.bottom, generator), scores
    if config.pick == "all":
        return Selection.all(found), scores
    assert scores is not None
    if config.enough is not None:
        gains = scores if config.score == "l2" else trace(lm, batches, replace(config, score="l2"), found)
        config = replace(config, nodes=size_of(scores, gains, config.nodes, config.enough))
    return select(scores, config), scores


def size_of(scores: Scores, gains: Scores, most: int, enough: float) -> int:
    """The fewest nodes of every matrix whose predicted decrease of the loss is `enough` of that of `most` nodes.

    Args:
        scores: What ranks the nodes of a matrix.
        gains: Norms of the nodes' gradients; a gradient step decreases the loss by their squares, to first order.
        most: Nodes of every matrix at most.
        enough: Share of the decrease, above 0 and at most 1.
    """
    by_rank = torch.zeros(most, dtype=torch.float64)
    for site, score in scores.items():
        by_rank += gains[site].double()[score.topk(most).indices].square()
    reached = by_rank.cumsum(0)
    return int((reached < enough * reached[-1]).sum()) + 1


def layer_weights(scores: Scores, nodes: int) -> Mapping[Site, float]:
    """Weights of the sites by what their highest nodes score: mean 1 over the sites of a kind."""
    peaks = {site: float(value.topk(min(nodes, len(value))).values.mean()) for site, value in scores.items()}
    means = {
        kind: sum(own) / len(own)
        for kind in {site.kind for site in peaks}
        for own in [[peak for site, peak in peaks.items() if site.kind == kind]]
    }
    return {site: peak / means[site.kind] if means[site.kind] > 0 else 1.0 for site, peak in peaks.items()}
