"""The anchor probe: in which layers do anchors carry the object, and not merely "here comes an answer" (spec 7.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LayerProbe:
    """Mean cosines of one layer, over references.

    Attributes:
        layer: The layer.
        own: Of a reference's state to the mean of its object's other references.
        other: To the anchors of other objects.
        own_centred: `own`, after the mean over objects was subtracted.
        other_centred: `other`, likewise.
    """

    layer: int
    own: float
    other: float
    own_centred: float
    other_centred: float

    @property
    def margin(self) -> float:
        """own - other: near 0, the layer says nothing of the object."""
        return self.own - self.other

    @property
    def margin_centred(self) -> float:
        """The same of the centred states."""
        return self.own_centred - self.other_centred


def probe(objects: Sequence[Tensor]) -> list[LayerProbe]:
    """Leave-one-out cosines of every layer.

    Args:
        objects: States of each object's references, `[n_i, n_layers, d_model]`; at least two objects with two
            references each. The own anchor of a state leaves that state out.

    Raises:
        ValueError: Fewer objects.
    """
    objects = [states.double() for states in objects if len(states) > 1]
    if len(objects) < 2:
        raise ValueError("the anchor probe needs at least two objects with two references each")
    means = torch.stack([states.mean(0) for states in objects])  # [objects, n_layers, d_model]
    centre = means.mean(0)
    raw, centred = _cosines(objects, means), _cosines([s - centre for s in objects], means - centre)
    return [LayerProbe(layer, *(float(x[layer]) for x in (*raw, *centred))) for layer in range(means.shape[1])]


def _cosines(objects: Sequence[Tensor], means: Tensor) -> tuple[Tensor, Tensor]:
    """Mean own and other cosines, `[n_layers]` each: means over references, objects alike."""
    own, other = [], []
    for i, states in enumerate(objects):
        rest = (means[i] * len(states) - states) / (len(states) - 1)
        own.append(F.cosine_similarity(states, rest, dim=-1).mean(0))
        others = torch.cat([means[:i], means[i + 1 :]])
        other.append(F.cosine_similarity(states[:, None], others[None], dim=-1).mean((0, 1)))
    return torch.stack(own).mean(0), torch.stack(other).mean(0)


@dataclass(frozen=True)
class Within:
    """Margins of one layer among references of the same relation, over objects that share it.

    References of one object are often worded alike, and those of other objects are not: then states tell objects apart
    from the first layer on, by the wording alone. Here a state is compared only with states of its own relation.

    Attributes:
        layer: The layer.
        margin: own - other of the states less their relation's mean over objects.
        chance: The same, mean over draws in which the relation's references were dealt to its objects at random.
    """

    layer: int
    margin: float
    chance: float

    @property
    def above(self) -> float:
        """margin - chance: what the object adds."""
        return self.margin - self.chance


def within(
    objects: Sequence[Tensor], relations: Sequence[Sequence[str | None]], draws: int = 32, seed: int = 0
) -> list[Within]:
    """Margins within relations, layer by layer.

    Args:
        objects: States of each object's references, `[n_i, n_layers, d_model]`.
        relations: Their relations.
        draws: Random deals behind `chance`.
        seed: Of the deals.

    Returns:
        One per layer; nothing where no two objects share a relation with two references of each.
    """
    groups: dict[str | None, list[Tensor]] = {}
    for states, names in zip(objects, relations, strict=True):
        for name in dict.fromkeys(names):
            own = states[[i for i, other in enumerate(names) if other == name]]
            if len(own) > 1:
                groups.setdefault(name, []).append(own)
    shared = [members for members in groups.values() if len(members) > 1]
    if not shared:
        return []
    generator = torch.Generator().manual_seed(seed)
    margin = _margins(shared)
    dealt = torch.stack([_margins([_deal(members, generator) for members in shared]) for _ in range(draws)]).mean(0)
    return [Within(layer, float(margin[layer]), float(dealt[layer])) for layer in range(len(margin))]


def telling(probes: Sequence[LayerProbe], inside: Sequence[Within]) -> list[float]:
    """How well each layer tells objects apart: within relations, above chance; else by the centred margin.

    The centred margin also counts what the wording of prompts gives away, which is much in the lowest layers.

    Args:
        probes: One per layer.
        inside: One per layer, or nothing where no two objects share a relation.
    """
    return [w.above for w in inside] if inside else [p.margin_centred for p in probes]


def best_window(scores: Sequence[float], first: int) -> list[int]:
    """A quarter of the depth, contiguous, with the largest mean score.

    Args:
        scores: One per layer (`telling`).
        first: First layer that may be in it; the last layer of the model never is.
    """
    n = len(scores)
    width = max(1, round(0.25 * n))
    last = max(first, n - 2)
    starts = range(first, max(first, last - width + 1) + 1)
    windows = [[layer for layer in range(start, start + width) if layer <= last] for start in starts]
    return max(windows, key=lambda w: sum(scores[layer] for layer in w) / len(w))


def _margins(groups: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean centred margin, `[n_layers]`: the mean over all objects of all groups."""
    found = []
    for members in groups:
        means = torch.stack([states.mean(0) for states in members])
        centre = means.mean(0)
        own, other = _cosines([states - centre for states in members], means - centre)
        found += [own - other] * len(members)
    return torch.stack(found).mean(0)


def _deal(members: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """The same states in groups of the same sizes, at random."""
    every = torch.cat(list(members))
    order = torch.randperm(len(every), generator=generator).tolist()
    sizes = [len(states) for states in members]
    return [every[part] for part in torch.tensor(order).split(sizes)]
