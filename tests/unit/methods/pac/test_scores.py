"""Scores of nodes from thin factors against their definitions on the whole gradient (specs/pac.md 2.4, 7.3)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kedit.methods.pac import Score, node_scores
from kedit.methods.pac.tracing.scores import dense_scores

SCORES: tuple[Score, ...] = ("zscore", "l2", "abs_sum", "signed_sum")


def reference(g: Tensor, score: Score) -> Tensor:
    """A score by its definition, node by node, in float64."""
    g = g.double()
    if score == "zscore":
        g = torch.stack([(row - row.mean()) / row.std() for row in g])
        return torch.stack([column.abs().mean() for column in g.T])
    reduce = {"l2": torch.linalg.vector_norm, "abs_sum": lambda c: c.abs().sum(), "signed_sum": torch.sum}[score]
    return torch.stack([reduce(column) for column in g.T])


def assert_near(found: Tensor, wanted: Tensor, share: float = 2e-5) -> None:
    """Equal within a share of the largest number."""
    assert found.shape == wanted.shape
    assert bool(wanted.abs().max() > 0)
    assert float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max()) < share


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("tokens", [1, 9, 60])
def test_node_scores_of_any_rank_and_tile(score: Score, tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x, s = torch.randn(tokens, 48, generator=generator), torch.randn(tokens, 130, generator=generator)
    wanted = reference(x.double().T @ s.double(), score)
    for chunk in (None, 1, 7, 48, 1000):
        assert_near(node_scores(x, s, score, chunk), wanted)
        assert_near(dense_scores(x.T @ s, score, chunk), wanted)


def test_a_row_of_equal_gradients_makes_no_nan() -> None:
    """The released code divides such a row by its std of 0, and every score of the matrix is NaN."""
    generator = torch.Generator().manual_seed(0)
    x, s = torch.randn(3, 20, generator=generator), torch.randn(3, 50, generator=generator)
    s[0] = 1.7  # a token that gives every node the same
    x[:, 4] = 0
    x[1:, 11] = 0
    rows = [d for d in range(20) if d not in (4, 11)]
    wanted = reference(x[:, rows].T @ s, "zscore") * len(rows) / 20
    assert_near(node_scores(x, s), wanted)
    g = x.T @ s
    g[11] = g[11, 0]
    assert_near(dense_scores(g), wanted)
    for broken in (torch.nan, torch.inf):
        x[2, 3] = broken
        assert bool(node_scores(x, s).isnan().all())
        assert bool(dense_scores(x.T @ s).isnan().all())
