"""How much the nodes of one matrix matter, from its gradient G = X^T S `[D, M]` without ever holding G.

Column j of G is node j. A trace of T tokens gives G in factors X `[T, D]` and S `[T, M]`
(kedit/methods/pac/tracing/capture.py), of rank T at most. What needs every entry of G sees it in tiles of a few rows,
which stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Score = Literal["zscore", "l2", "abs_sum", "signed_sum"]

_TILE = {"cpu": 131_072, "cuda": 16_777_216}  # most entries of G at a time: half a megabyte stays in a core's L2
NOISE = 8 * torch.finfo(torch.float32).eps  # deviations below this share of what they are sums of are rounding


def node_scores(x: Tensor, s: Tensor, score: Score = "zscore", chunk: int | None = None) -> Tensor:
    """Scores of the nodes of one matrix from its gradient in factors.

    `zscore` is the released code's (specs/pac.md 2.4): mean over the rows d of |G[d, j] - mean_j| / std_j, std
    unbiased. Its mean over nodes is taken off S beforehand. Its std is taken over a tile's own rows, not from the
    identity E[g^2] - E[g]^2 of T x T Gram matrices: that cancels in float32, needs T x T numbers, however long the
    batch, and saves no time, since the tiles are in cache anyway. A row that is constant up to rounding scores 0
    at every node (the released code divides by its std of 0, and every score of the matrix is NaN).

    `l2` is the norm of column j, `signed_sum` its sum (the paper's formula): neither looks at D x M numbers. They are
    computed in float64, because they cancel. `abs_sum` is the sum of |G[d, j]| over d.

    Args:
        x: X, `[T, D]` float32.
        s: S, `[T, M]` float32.
        score: Which of them.
        chunk: Rows of G in a tile; None: as many as suit the device, at most an eighth of G.

    Returns:
        `[M]` float32, NaN where the factors are not finite.
    """
    if score == "signed_sum":
        return (x.double().sum(1) @ s.double()).float()
    if score == "l2" and len(x) <= x.shape[1]:
        inside, wide = x.double(), s.double()
        return ((inside @ inside.T) @ wide).mul_(wide).sum(0).clamp_min_(0).sqrt_().float()
    scale = None
    if score == "zscore":
        scale = torch.linalg.vector_norm(s, dim=1) @ x.abs()  # a row's norm if nothing in it cancelled
        s = s - s.mean(1, keepdim=True)
    left = x.T.contiguous()

    def rows(start: int, out: Tensor) -> Tensor:
        return torch.mm(left[start : start + len(out)], s, out=out)

    return _by_tiles(rows, x.shape[1], s, score, scale, chunk)


def dense_scores(g: Tensor, score: Score = "zscore", chunk: int | None = None) -> Tensor:
    """The same from G itself, `[D, M]` float32, where more tokens were summed than factors are worth: `[M]`."""
    if score == "signed_sum":
        return g.sum(0, dtype=torch.float64).float()

    def rows(start: int, out: Tensor) -> Tensor:
        part = g[start : start + len(out)]
        return torch.sub(part, part.mean(1, keepdim=True), out=out) if score == "zscore" else out.copy_(part)

    scale = torch.linalg.vector_norm(g, dim=1) if score == "zscore" else None
    return _by_tiles(rows, g.shape[0], g, score, scale, chunk)


def _by_tiles(
    rows: Callable[[int, Tensor], Tensor],
    depth: int,
    like: Tensor,
    score: Score,
    scale: Tensor | None,
    chunk: int | None,
) -> Tensor:
    """Reduce `rows(start, out)`, the rows of (centred) G from `start` on, tile by tile: `[M]`, M as `like` has."""
    width = like.shape[1]
    chunk = chunk or max(1, min(_TILE.get(like.device.type, _TILE["cuda"]) // width, depth // 8))
    total, tile = like.new_zeros(width), like.new_empty(min(chunk, depth), width)
    noise = None if scale is None else NOISE * scale
    for start in range(0, depth, chunk):
        part = rows(start, tile[: depth - start])
        if score == "l2":
            total += part.square_().sum(0)
        elif noise is None:
            total += part.abs_().sum(0)
        else:
            norms = torch.linalg.vector_norm(part, dim=1)
            constant = norms <= noise[start : start + chunk]
            total.addmv_(part.abs_().T, norms.reciprocal_().masked_fill_(constant, 0))
    if score == "zscore":
        return total.mul_((width - 1) ** 0.5 / depth)  # a row's std is its norm / sqrt(M - 1)
    return total.sqrt_() if score == "l2" else total
