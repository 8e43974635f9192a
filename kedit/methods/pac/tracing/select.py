"""From the nodes' scores to the nodes on critical paths: T+, which an edit rectifies, and T-, its contrast."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from typing import Literal

import torch
from torch import Tensor

from kedit.errors import KeditError, at_least
from kedit.methods.pac.tracing.scores import Score
from kedit.methods.pac.tracing.sites import Site
from kedit.runtime.option_values import check_values

Scores = dict[Site, Tensor]
"""Scores of a site's nodes, `[M]` float32 on the CPU, from the lowest layer up."""

_Choice = tuple[list[Site], Tensor]  # sites that take the same node, and their scores' sum [M] float64


@dataclass
class TraceConfig:
    """How critical paths are traced (specs/pac.md 3, rows 1 to 6).

    Args:
        score: What a node's gradient is worth: zscore is the released code's mean |z| over the gradient's rows, l2
            its norm, abs_sum the sum of its magnitudes, signed_sum the paper's formula, its plain sum: the lowest
            are then the most negative, not the least important, and for the values of models with LayerNorm
            (GPT-2, GPT-J, OPT) it is 0 but for rounding, since their gradients have no mean.
        nodes: |T+|: nodes of every matrix, or paths with `mode: kbest`.
        contrast_nodes: |T-|: the same of the lowest scores; 0 for none.
        mode: per_matrix takes the highest nodes of every matrix, as the released code does; kbest takes the nodes
            on the complete paths (one node in every matrix) of the highest sum, as the paper says. These differ in
            few nodes, so that they are far fewer.
        tie_kv: A key and the value of the same index count as one node, with their scores' sum (an ablation).
        include_gate: Trace the gate matrices too; the paper's method leaves them as they are.
        layers: The layers whose matrices have nodes; null: all, as the paper.
        node_source: What T+ and T- are: traced by their scores, or, as controls, random: as many nodes of every
            matrix, drawn; all: every node in T+ and none in T-, which is full fine-tuning of the matrices.
        coverage: T+ is only as large as it need be: the fewest nodes of every matrix whose predicted decrease of the
            loss (the sum of their gradients' squares, that of a gradient step) is this share of what `nodes` would
            give; null: always `nodes`.
        memory: Most memory that tracing takes, as a share of one dense set of FFN gradients in float32 (an estimate;
            kedit/methods/pac/tracing/trace.py says what is taken in any case). The gradient of several batches at once
            is summed for as many matrices as fit into three quarters of it, with one pass over the batches for each
            such group: about 15 passes with 0.1, a single one with 1.34.
    """

    score: Score = "zscore"
    nodes: int = 15
    contrast_nodes: int = 1
    mode: Literal["per_matrix", "kbest"] = "per_matrix"
    tie_kv: bool = False
    include_gate: bool = False
    layers: list[int] | None = None
    node_source: Literal["traced", "random", "all"] = "traced"
    coverage: float | None = None
    memory: float = 0.1

    def __post_init__(self) -> None:
        check_values(vars(self), "model.trace")
        for name, least in (("nodes", 1), ("contrast_nodes", 0)):
            at_least(f"model.trace.{name}", getattr(self, name), least)
        if not self.memory > 0:
            raise KeditError(f"model.trace.memory: {self.memory:g} is not above 0")
        if self.coverage is not None:
            if not 0 < self.coverage <= 1:
                raise KeditError(f"model.trace.coverage: {self.coverage:g} is not above 0 and at most 1")
            if self.mode != "per_matrix" or self.tie_kv or self.node_source != "traced":
                raise KeditError(
                    "model.trace.coverage: only with node_source: traced, mode: per_matrix and tie_kv: false"
                )


@dataclass(frozen=True)
class Selection:
    """Chosen nodes. Indices are int64, ascending, on the CPU, and count a site's own nodes (without its `offset`).

    Attributes:
        critical: T+: site -> `[n]`.
        contrast: T-: site -> `[m]`, none of them in T+.
    """

    critical: Mapping[Site, Tensor]
    contrast: Mapping[Site, Tensor]

    @classmethod
    def random(cls, sites: Sequence[Site], nodes: int, contrast_nodes: int, generator: torch.Generator) -> Selection:
        """A control: as many nodes of every matrix, drawn by `generator` (a CPU one).

        Raises:
            KeditError: More nodes than a matrix has.
        """
        check_room(sites, nodes, contrast_nodes)
        drawn = {site: torch.randperm(site.width, generator=generator) for site in sites}
        return cls(
            {site: order[:nodes].sort().values for site, order in drawn.items()},
            {site: order[nodes : nodes + contrast_nodes].sort().values for site, order in drawn.items()},
        )

    @classmethod
    def all(cls, sites: Sequence[Site]) -> Selection:
        """A control: every node in T+ and none in T-, which makes full fine-tuning of the matrices."""
        return cls(
            {site: torch.arange(site.width) for site in sites},
            {site: torch.empty(0, dtype=torch.long) for site in sites},
        )


def select(scores: Scores, config: TraceConfig) -> Selection:
    """T+ and T- from scores. Of equal scores the lower index is taken.

    With `kbest`, T- are the nodes on the lowest paths through what T+ leaves over.

    Raises:
        KeditError: A matrix has too few nodes for both.
    """
    if config.mode == "per_matrix":
        check_room(scores, config.nodes, config.contrast_nodes)
    choices = _choices(scores, config.tie_kv)
    choose: Callable[[list[Tensor], int], list[Tensor]] = _each if config.mode == "per_matrix" else _on_paths
    values = [value for _, value in choices]
    critical = choose(values, config.nodes)
    rest = _left(values, critical)
    for (group, value), taken in zip(choices, critical, strict=True):
        if config.contrast_nodes and len(taken) == len(value):
            raise KeditError(
                f"model.trace.nodes: {config.nodes} paths take every node of {group[0].path}; none is left for T-"
            )
    contrast = choose(rest, config.contrast_nodes)
    return Selection(_by_site(choices, critical, scores), _by_site(choices, contrast, scores))


def layer_profile(scores: Scores, nodes: int = 15) -> tuple[list[str], Tensor]:
    """How much each layer's matrices matter: the mean of their `nodes` highest scores.

    z-scores are taken within a matrix: between layers they compare how peaked the gradient is, not its size
    (specs/pac.md 4).

    Returns:
        Names of the columns (key, value, and gate where it was traced), and `[layers, columns]` float32.
    """
    kinds = [kind for kind in ("key", "value", "gate") if any(site.kind == kind for site in scores)]
    layers = sorted({site.layer for site in scores})
    profile = torch.full((len(layers), len(kinds)), torch.nan)
    for site, value in scores.items():
        profile[layers.index(site.layer), kinds.index(site.kind)] = value.topk(min(nodes, len(value))).values.mean()
    return kinds, profile


def k_best(lists: Sequence[Sequence[float]], k: int) -> list[tuple[int, ...]]:
    """The `k` choices of one entry from each list whose sums are the highest, the highest first.

    Exact, by a heap over partial changes of the best choice: lists are ordered by how little their second entry
    costs, and a state may only move the last list that it changed, go on to the next, or put it back and go on.
    So every choice is made once, and k of them take O(k log k) steps beside the ordering.

    Args:
        lists: Each descending, not empty.
        k: How many; all there are, where there are fewer.

    Returns:
        For every choice, the index taken from each list. Equal sums come in an order that is always the same.
    """
    gaps = [[entries[0] - entry for entry in entries] for entries in lists]  # what an entry costs, ascending
    order = sorted((i for i in range(len(lists)) if len(lists[i]) > 1), key=lambda i: gaps[i][1])
    ties = count()
    heap: list[tuple[float, int, int, tuple[tuple[int, int], ...]]] = []
    found = [(0,) * len(lists)] if k > 0 else []

    def push(changes: tuple[tuple[int, int], ...]) -> None:
        *_, (at, entry) = changes
        if at < len(order) and entry < len(gaps[order[at]]):
            cost = sum(gaps[order[i]][j] for i, j in changes)
            heapq.heappush(heap, (cost, len(changes), next(ties), changes))

    push(((0, 1),))
    while heap and len(found) < k:
        changes = heapq.heappop(heap)[-1]
        choice = [0] * len(lists)
        for i, j in changes:
            choice[order[i]] = j
        found.append(tuple(choice))
        at, entry = changes[-1]
        push((*changes[:-1], (at, entry + 1)))
        push((*changes, (at + 1, 1)))
        if entry == 1:
            push((*changes[:-1], (at + 1, 1)))
    return found


def _choices(scores: Scores, tied: bool) -> list[_Choice]:
    """Independent choices of a node: for every site, or for all sites of a layer together."""
    if not tied:
        values = torch.cat(list(scores.values())).double().split([len(value) for value in scores.values()])
        return [([site], value) for site, value in zip(scores, values, strict=True)]
    layers: dict[int, list[Site]] = {}
    for site in scores:
        layers.setdefault(site.layer, []).append(site)
    return [(group, torch.stack([scores[site].double() for site in group]).sum(0)) for group in layers.values()]


def _each(values: list[Tensor], n: int) -> list[Tensor]:
    """Indices of the `n` highest of every `[M]`, ascending: of all of one size together, if no two are equal."""
    if n and len({len(value) for value in values}) == 1:
        whole = torch.stack(values)
        rows, columns = (whole >= whole.topk(n).values[:, -1:]).nonzero().T
        if len(rows) == n * len(values):  # as many in each, unless scores are equal
            return list(columns.split(n))
    return [_highest(value, n) for value in values]


def _left(values: list[Tensor], taken: list[Tensor]) -> list[Tensor]:
    """`values` the other way round, those taken below all others."""
    starts = accumulate((len(value) for value in values), initial=0)
    places = torch.cat([nodes + start for nodes, start in zip(taken, starts, strict=False)])
    left = torch.cat(values).neg_().index_fill_(0, places, -torch.inf)
    return list(left.split([len(value) for value in values]))


def _on_paths(values: list[Tensor], n: int) -> list[Tensor]:
    """Indices of the nodes on the `n` best paths, for every `[M]`, ascending."""
    heads = []
    for value in values:
        head = _highest(value, min(n, int(value.isfinite().sum())))
        heads.append(head[value[head].sort(descending=True, stable=True).indices])
    paths = torch.tensor(k_best([value[head].tolist() for value, head in zip(values, heads, strict=True)], n))
    return [head[paths[:, i].unique()].sort().values if n else head[:0] for i, head in enumerate(heads)]


def _highest(value: Tensor, n: int) -> Tensor:
    """Indices of the `n` highest entries, ascending; of equal ones the first. `topk` alone takes any of them."""
    if n == 0:
        return torch.empty(0, dtype=torch.long)
    least = value.topk(n).values[-1]
    found = (value >= least).nonzero()[:, 0]
    if len(found) == n:
        return found
    above, equal = (value > least).nonzero()[:, 0], (value == least).nonzero()[:, 0]
    return torch.cat([above, equal[: n - len(above)]]).sort().values


def _by_site(choices: list[_Choice], taken: list[Tensor], scores: Scores) -> dict[Site, Tensor]:
    found = {site: nodes for (group, _), nodes in zip(choices, taken, strict=True) for site in group}
    return {site: found[site] for site in scores}


def check_room(sites: Iterable[Site], nodes: int, contrast_nodes: int) -> None:
    """Raises `KeditError` where a matrix has fewer nodes than T+ and T- take of it."""
    for site in sites:
        if nodes + contrast_nodes > site.width:
            wanted = f"{nodes} critical and {contrast_nodes} contrast nodes are more"
            raise KeditError(f"model.trace.nodes: {wanted} than the {site.width} of {site.path}")
