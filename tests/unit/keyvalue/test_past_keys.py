"""`PastKeys`: the order of the edits, their state, and solves that know them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kedit.covariance.null_space import NullSpace
from kedit.keyvalue.growing_inverse import WithinNullSpace
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


METRIC = WithinNullSpace(NullSpace(torch.zeros(6, 0).double()), 0.5)


def filled(sizes: list[int], solves: bool = True) -> PastKeys:
    """Batches of keys, solved for and remembered one after the other, as an editor does."""
    past = PastKeys()
    for number, n in enumerate(sizes):
        if solves:
            past.gains(3, keys(n, 100 + number), METRIC)
        past.remember([f"{number}-{i}" for i in range(n)], {3: keys(n, number)})
    return past


def test_solves_know_the_keys_as_they_are_kept() -> None:
    sizes = [2, 1, 5, 3]
    for count in range(len(sizes) + 1):
        new = keys(2, 9)
        seen = [keys(n, i).float().double() for i, n in enumerate(sizes[:count])]
        every = torch.cat([new, *seen])
        wanted = torch.linalg.inv(0.5 * torch.eye(6).double() + every.T @ every) @ new.T
        past = filled(sizes[:count])
        torch.testing.assert_close(past.gains(3, new, METRIC), wanted.T)
        assert past.is_dense(3) == (sum(sizes[:count]) >= 6)


def test_keys_are_dropped_when_a_dense_sum_stands_for_them() -> None:
    past = filled([2, 2, 1])
    assert past.of(3, keys(1, 0)).shape == (5, 6)
    past.remember(["a", "b"], {3: keys(2, 7)})
    past.gains(3, keys(1, 0), METRIC)
    assert past.is_dense(3)
    assert past.of(3, keys(1, 0)).shape == (0, 6)
    past.remember(["c"], {3: keys(1, 8)})
    assert torch.equal(past.state(["c"])["past_keys"]["keys"][0][3], keys(1, 8).float())
    with pytest.raises(RuntimeError, match="dropped"):
        past.state(["a", "b"])
    assert past.state(["failed"])["past_keys"] == {"cases": [], "keys": [], "dense": {}}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("sizes", [[2, 1], [2, 2, 2], [4, 1, 3, 2, 2], [7]])
def test_what_is_loaded_goes_on_with_the_same_bits(sizes: list[int], whole: bool) -> None:
    """From the states of single batches, as the journal has them, or from one of all; before and after the switch."""
    past, states = PastKeys(), []
    for number, n in enumerate(sizes):
        past.gains(3, keys(n, 100 + number), METRIC)
        cases = [f"{number}-{i}" for i in range(n)]
        past.remember(cases, {3: keys(n, number)})
        states.append(past.state([*cases, "failed"]))
    if whole:
        states = [past.state([f"{number}-{i}" for number, n in enumerate(sizes) for i in range(n)])]
    again = PastKeys()
    for state in states:
        again.load(state)
    for step in range(3):
        new = keys(2, 20 + step)
        assert torch.equal(again.gains(3, new, METRIC), past.gains(3, new, METRIC))
        for one in (past, again):
            one.remember([f"new-{step}"], {3: new[:1]})


def test_a_batch_that_failed_at_one_layer_leaves_the_others_whole() -> None:
    """The lower layer has taken its keys up, the upper one has not: a state of all still holds both."""
    past = PastKeys()
    past.remember(list("abcdef"), {3: keys(6, 0), 4: keys(6, 1)})
    past.gains(3, keys(1, 2), METRIC)
    again = PastKeys()
    again.load(past.state(list("abcdef")))
    for layer in (3, 4):
        assert torch.equal(again.gains(layer, keys(2, 5), METRIC), past.gains(layer, keys(2, 5), METRIC))
