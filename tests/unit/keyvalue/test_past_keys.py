"""`PastKeys`: the order of the edits, their state, and solves that know them."""

from __future__ import annotations

import torch
from torch import Tensor

from kedit.keyvalue.past_keys import PastKeys


def keys(n: int, seed: int) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(seed)).double()


def test_keys_come_back_in_the_order_of_the_edits() -> None:
    past, first, second = PastKeys(), keys(2, 0), keys(1, 1)
    assert past.of(3, first).shape == (0, 6)
    past.remember(["b", "a"], {3: first, 4: first + 1})
    past.remember(["c"], {3: second, 4: second})
    assert torch.equal(past.of(3, first), torch.cat([first, second]).float().double())
    assert past.of(4, first.float()).dtype == torch.float32


def test_states_of_batches_and_of_all_make_the_same() -> None:
    past = PastKeys()
    past.remember(["b", "a"], {3: keys(2, 0)})
    past.remember(["c"], {3: keys(1, 1)})
    for parts in ([["b", "a"], ["c"]], [["b", "a", "c"]], [["b", "a", "failed"], ["c"]]):
        again = PastKeys()
        for cases in parts:
            again.load(past.state(cases))
        assert torch.equal(again.of(3, keys(1, 0)), past.of(3, keys(1, 0)))


def test_what_is_remembered_is_not_what_the_caller_changes() -> None:
    past, given = PastKeys(), keys(1, 0).float()
    past.remember(["a"], {0: given})
    given.zero_()
    assert bool(past.of(0, given).any())
