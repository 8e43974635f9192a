"""Which nodes an edit trains: traced at the weights as they are, or those of a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from kedit.methods.pac.labels import Labelled
from kedit.methods.pac.tracing.select import Scores, Selection, TraceConfig, check_room, layer_profile, select
from kedit.methods.pac.tracing.sites import Site, sites
from kedit.methods.pac.tracing.trace import trace
from kedit.model.architecture import check_layers
from kedit.model.lm import LM


def nodes_to_choose_from(lm: LM, config: TraceConfig) -> list[Site]:
    """The matrices whose nodes are ranked.

    Raises:
        KeditError: One has too few nodes for T+ and T-, or there is no such layer.
    """
    found = sites(lm, config.include_gate)
    if config.layers is not None:
        check_layers(lm.arch, config.layers, "model.trace.layers")
        found = [site for site in found if site.layer in config.layers]
    if config.node_source != "all" and config.mode == "per_matrix":
        check_room(found, config.nodes, config.contrast_nodes)
    return found


def choose(
    lm: LM, batches: Sequence[Labelled], config: TraceConfig, generator: torch.Generator
) -> tuple[Selection, Scores | None]:
    """T+ and T- of some requests.

    Args:
        lm: The model, with the changes at which to trace.
        batches: The requests; what is traced is the sum of the batches' losses.
        config: How.
        generator: Draws where `node_source` is random.

    Returns:
        The nodes, and the scores of all nodes (None where nothing was traced).

    Raises:
        KeditError: A gradient is not finite, or a matrix has too few nodes.
    """
    found = nodes_to_choose_from(lm, config)
    if config.node_source == "random":
        return Selection.random(found, config.nodes, config.contrast_nodes, generator), None
    if config.node_source == "all":
        return Selection.all(found), None
    scores = trace(lm, batches, config, found)
    if config.coverage is not None:
        gains = scores if config.score == "l2" else trace(lm, batches, replace(config, score="l2"), found)
        config = replace(config, nodes=size_of(scores, gains, config.nodes, config.coverage))
    return select(scores, config), scores


def size_of(scores: Scores, gains: Scores, most: int, coverage: float) -> int:
    """The fewest nodes of every matrix whose predicted decrease of the loss is `coverage` of that of `most` nodes.

    Args:
        scores: What ranks the nodes of a matrix.
        gains: Norms of the nodes' gradients; a gradient step decreases the loss by their squares, to first order.
        most: Nodes of every matrix at most.
        coverage: Share of the decrease, above 0 and at most 1.
    """
    by_rank = torch.zeros(most, dtype=torch.float64)
    for site, score in scores.items():
        by_rank += gains[site].double()[score.topk(most).indices].square()
    reached = by_rank.cumsum(0)
    return int((reached < coverage * reached[-1]).sum()) + 1


def layer_weights(scores: Scores, nodes: int) -> Mapping[Site, float]:
    """Weights of the sites by what their highest nodes score: mean 1 over the sites of a kind."""
    kinds, profile = layer_profile(scores, nodes)
    relative = profile.double() / profile.double().nanmean(0)
    relative[:, profile.nanmean(0) <= 0] = 1.0
    layers = sorted({site.layer for site in scores})
    return {site: float(relative[layers.index(site.layer), kinds.index(site.kind)]) for site in scores}
