"""z-scores of the nodes of many matrices at once, for devices that wait for launches.

The same numbers as `node_scores` but for rounding. Pairs of one shape wait until there are a few, and are scored
together: the norms of a gradient's rows come from T x T products in float64, so that a tile is made and summed, and
nothing else. On a CPU, where a tile stays in the cache, `node_scores` scores each matrix as its pair arrives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kedit.methods.pac.tracing.scores import NOISE
from kedit.methods.pac.tracing.select import Scores
from kedit.methods.pac.tracing.sites import Site

_TILE = 2**24  # entries of all gradients of a group at a time, 64 MB, and no more than one matrix has
_WAITING = 2**18, 2**22  # numbers of the pairs of one shape that wait: a quarter of a matrix, from 1 to 16 MB

_Entry = tuple[Scores, Site, Tensor, Tensor]


class StackedScores:
    """Takes pairs of sites and scores them in groups."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, ...], list[_Entry]] = {}

    def add(self, into: Scores, site: Site, x: Tensor, s: Tensor) -> None:
        """Scores a pair, now or later.

        Args:
            into: Gets the site's scores, `[M]` float32.
            site: The matrix.
            x: X, `[T, D]` float32.
            s: S, `[T, M]` float32.
        """
        shape = (len(x), x.shape[1], s.shape[1])
        waiting = self._waiting.setdefault(shape, [])
        waiting.append((into, site, x, s))
        least, most = _WAITING
        room = max(least, min(most, shape[1] * shape[2] // 4))
        if (len(waiting) + 1) * (x.numel() + s.numel()) > room:
            _score(self._waiting.pop(shape))

    def finish(self) -> None:
        """Scores what waits."""
        while self._waiting:
            _score(self._waiting.popitem()[1])


def _score(entries: list[_Entry]) -> None:
    x, s = torch.stack([entry[2] for entry in entries]), torch.stack([entry[3] for entry in entries])
    for (into, site, *_), value in zip(entries, stacked_zscores(x, s).unbind(0), strict=True):
        into[site] = value


def stacked_zscores(x: Tensor, s: Tensor, chunk: int | None = None) -> Tensor:
    """z-scores of the nodes of several matrices (`node_scores`).

    Args:
        x: X of each, `[n, T, D]` float32.
        s: S of each, `[n, T, M]` float32.
        chunk: Rows of every gradient in a tile; None: as many as fit into 64 MB and into one matrix, at most an eighth.

    Returns:
        `[n, M]` float32, NaN where a matrix's factors are not finite.
    """
    n, _, depth = x.shape
    width = s.shape[2]
    chunk = chunk or max(1, min(_TILE // (n * width), depth // max(8, n)))
    noise = NOISE * torch.bmm(torch.linalg.vector_norm(s, dim=2)[:, None], x.abs())  # [n, 1, D]
    s = s - s.mean(2, keepdim=True)
    exact, wide = x.double(), s.double()
    gram = torch.bmm(wide, wide.transpose(1, 2))  # [n, T, T]
    del wide
    norms = torch.bmm(gram, exact).mul_(exact).sum(1, keepdim=True).clamp_min_(0).sqrt_().float()
    left = x * norms.reciprocal().masked_fill_(norms <= noise, 0)
    total, tile = s.new_zeros(n, width), s.new_empty(n, min(chunk, depth), width)
    for start in range(0, depth, chunk):
        rows = left[:, :, start : start + chunk].transpose(1, 2)
        part = torch.bmm(rows, s, out=tile) if rows.shape[1] == tile.shape[1] else torch.bmm(rows, s)
        total += torch.linalg.vector_norm(part, 1, dim=1)
    return total.mul_((width - 1) ** 0.5 / depth)  # a row's std is its norm / sqrt(M - 1)
