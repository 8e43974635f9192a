"""The prefix's keys and values, and the room behind them, against a concatenation."""

from __future__ import annotations

import pytest
import torch

from kedit.forward.prefix_cache import Prefix
from tests.support.tiny_models import tiny_lm

PREFIXES = [(5, 6, 7), (), (9, 4)]


def made(room: int = 2) -> tuple[Prefix, torch.Tensor]:
    lm = tiny_lm("llama")
    with torch.no_grad():
        prefix = Prefix(lm, PREFIXES, room)
    block = prefix.keys[1]
    assert block is not None
    return prefix, torch.randn(3, block.shape[1], room, block.shape[3], generator=torch.Generator().manual_seed(0))


def test_what_is_written_stands_behind_the_prefix_and_has_the_gradient() -> None:
    prefix, new = made()
    before = [None if t is None else t[:, :, : prefix.width].clone() for t in (prefix.keys[1], prefix.values[1])]
    assert prefix.width == 3
    for factor in (1.0, 2.0):  # as often as one likes
        keys, values = (factor * new).requires_grad_(), (new - factor).requires_grad_()
        for joined, old, own in zip(prefix.update(keys, values, 1), before, (keys, values), strict=True):
            assert old is not None
            assert torch.equal(joined, torch.cat([old, own], 2))
            weight = torch.arange(joined.numel()).view_as(joined).float()
            (gradient,) = torch.autograd.grad((joined * joined * weight).sum(), own)
            assert torch.equal(gradient, (2 * joined * weight)[:, :, 3:])
    assert prefix.keys[1] is not None
    assert not prefix.keys[1].requires_grad


def test_another_type_is_joined_as_by_concatenation() -> None:
    """Under autocast the suffix has another one than the prefix."""
    prefix, new = made()
    joined, _ = prefix.update(new.double(), new.double(), 1)
    assert joined.dtype == torch.float64
    assert torch.equal(joined[:, :, 3:], new.double())


def test_a_backward_pass_after_the_next_forward_pass_is_refused() -> None:
    prefix, new = made()
    own = new.clone().requires_grad_()
    loss = prefix.update(own, own, 1)[0].square().sum()
    prefix.update(own, own, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_some_rows_and_some_layers() -> None:
    prefix, new = made()
    some = prefix.select(torch.tensor([2, 0]))
    keys, _ = some.update(new[[2, 0]], new[[2, 0]], 1)
    whole, _ = prefix.update(new, new, 1)
    assert torch.equal(keys, whole[[2, 0]])
    assert torch.equal(some.mask, prefix.mask[[2, 0]])
    prefix.drop_below(1)
    assert prefix.keys[0] is None
    with pytest.raises(RuntimeError, match="dropped"):
        prefix.update(new, new, 0)
    assert torch.equal(prefix.update(new, new, 1)[0], whole)
