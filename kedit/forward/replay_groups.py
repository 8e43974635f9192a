"""Replay of rows in a few groups of near-equal length, so that little is computed for padding alone.

A group is a replay of its own: the layers run once for each group, on fewer tokens in all. What a further run costs is
counted in tokens (`run_cost`), and the groups are those that cost least. Few rows stay one group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.forward.replay import Replay, Row, Site

if TYPE_CHECKING:
    from kedit.model.lm import LM

_LAUNCHES = {"cpu": (32, 1.1e7), "other": (256, 4e10)}  # least cost, and that of a layer of one parameter; in tokens


@dataclass(frozen=True)
class Places:
    """Tokens that are read of a grouped replay.

    Attributes:
        parts: For each group, the rows within it and their suffix positions, `[m_i]` int64 each.
        order: Where each place stands when those of all groups follow each other, `[m]`; None: they are in order.
    """

    parts: tuple[tuple[Tensor, Tensor], ...]
    order: Tensor | None

    def gather(self, found: Sequence[Tensor]) -> Tensor:
        """What the groups gave for their parts, in the order of the places."""
        whole = found[0] if len(found) == 1 else torch.cat(list(found))
        return whole if self.order is None else whole[self.order]


class GroupedReplay:
    """`Replay` of rows that are padded to the longest of their group, not of all; rows keep their numbers.

    Its layers are compiled where `lm.compiles` says so.

    Args:
        lm: The model, with the weights it should have.
        rows: Sequences.
        first: Index of the first layer that is run at every step.
        cost: What a group costs beside its tokens, in tokens; None: by model and device.

    Attributes:
        n_rows: Number of sequences.
        groups: The replays.
        members: The rows of each, `[m_i]` int64, ascending.
    """

    def __init__(self, lm: LM, rows: Sequence[Row], first: int, cost: float | None = None) -> None:
        lengths = [len(row.suffix) for row in rows]
        bounds = group_bounds(lengths, run_cost(lm) if cost is None else cost)
        self.n_rows = len(rows)
        self.groups: list[Replay] = []
        self.members: list[Tensor] = []
        for inside in group_members(lengths, bounds):
            self.groups.append(Replay(lm, [rows[i] for i in inside], first, compiled=lm.compiles))
            self.members.append(torch.tensor(inside, device=lm.device))

    def select(self, index: Tensor) -> GroupedReplay:
        """The same replay for some of its rows, `index: [m]` int64, ascending; what stays whole is not copied."""
        part = copy(self)
        part.n_rows = len(index)
        number = torch.full((self.n_rows,), -1, device=index.device)
        number[index] = torch.arange(len(index), device=index.device)
        part.groups, part.members = [], []
        for group, members in zip(self.groups, self.members, strict=True):
            kept = (number[members] >= 0).nonzero()[:, 0]
            if len(kept):
                part.groups.append(group if len(kept) == len(members) else group.select(kept))
                part.members.append(number[members[kept]])
        return part

    def places(self, row: Tensor, position: Tensor) -> Places:
        """Tokens to read: their rows and suffix positions, `[m]` int64 each."""
        if len(self.groups) == 1:
            return Places(((row, position),), None)
        parts, at = [], []
        for members in self.members:
            local = torch.full((self.n_rows,), -1, device=row.device)
            local[members] = torch.arange(len(members), device=row.device)
            inside = (local[row] >= 0).nonzero()[:, 0]
            parts.append((local[row[inside]], position[inside]))
            at.append(inside)
        return Places(tuple(parts), torch.cat(at).argsort())

    def run(
        self, add: Mapping[Site, Tensor], at: Places, layers: Mapping[int, Places] | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the layers on the suffixes, with vectors added at the subject's last token.

        Args:
            add: Site -> `[n_rows, d_model]`, added at every row's first suffix token.
            at: Tokens whose states are wanted.
            layers: Layer -> tokens whose states are wanted after it.

        Returns:
            What leaves the last layer at the places `at`, `[m, d_model]`; and layer -> the same of its own places.
        """
        layers = layers or {}
        final: list[Tensor] = []
        seen: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for i, (group, members) in enumerate(zip(self.groups, self.members, strict=True)):

            def read(layer: int, hidden: Tensor, i: int = i) -> None:
                if layer in layers:
                    seen[layer].append(hidden[layers[layer].parts[i]])

            own = add if len(self.groups) == 1 else {site: value[members] for site, value in add.items()}
            final.append(group.run(own, read if layers else None)[at.parts[i]])
        return at.gather(final), {layer: layers[layer].gather(found) for layer, found in seen.items()}

    def first_keys(self) -> tuple[Tensor, Tensor]:
        """As `Replay.first_keys`, of all rows."""
        keys, values = zip(*(group.first_keys() for group in self.groups), strict=True)
        return self._in_order(keys), self._in_order(values)

    def first_output(self, site: Site) -> Tensor:
        """As `Replay.first_output`, of all rows."""
        return self._in_order([group.first_output(site) for group in self.groups])

    def _in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """What the groups gave for each of their rows, in the order of the rows."""
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))[torch.cat(self.members).argsort()]


def group_bounds(lengths: Sequence[int], cost: float) -> list[int]:
    """The longest length of each group, ascending: those groups whose padded tokens and runs cost least.

    Args:
        lengths: Tokens of each row, at least 1.
        cost: Of one more group, in tokens.
    """
    counts = sorted(Counter(lengths).items())
    best: list[tuple[float, list[int]]] = [(0.0, [])]  # of the shortest rows: the least cost, and its bounds
    for end in range(1, len(counts) + 1):
        bound, rows, options = counts[end - 1][0], 0, []
        for start in range(end - 1, -1, -1):
            rows += counts[start][1]
            spent, bounds = best[start]
            options.append((spent + bound * rows + cost, [*bounds, bound]))
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]


def group_members(lengths: Sequence[int], bounds: Sequence[int]) -> list[list[int]]:
    """The rows of each group, ascending: those that are no longer than its bound and longer than the one before."""
    below = [0, *bounds[:-1]]
    return [
        [i for i, length in enumerate(lengths) if low < length <= high] for low, high in zip(below, bounds, strict=True)
    ]


def run_cost(lm: LM, on_cpu: bool | None = None) -> float:
    """What one more run of the layers costs beside its tokens, in tokens.

    It hands some hundred operations a layer to the device, whose overhead is worth the more tokens the smaller the
    layer is; and a GPU reads a layer's weights in the time in which it computes a few hundred tokens.

    Args:
        lm: The model.
        on_cpu: Whether it runs on a CPU; None: where it is.
    """
    on_cpu = lm.device.type == "cpu" if on_cpu is None else on_cpu
    least, launches = _LAUNCHES["cpu" if on_cpu else "other"]
    layer = lm.arch.layer(lm.model, 0) if lm.arch.n_layers else lm.model
    return least + launches / max(1, sum(parameter.numel() for parameter in layer.parameters()))
