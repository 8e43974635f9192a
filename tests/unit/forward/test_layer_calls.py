"""Which arguments of a layer go by rows: found by one row more, never by a size that happens to fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from kedit.errors import KeditError
from kedit.forward.layer_calls import RowAxis, exchanged, row_axes

N = 4


def call(n: int, **more: Any) -> list[Any]:
    """Arguments of a layer for `n` rows of 4 heads, as models of several kinds give them."""
    alibi = torch.arange(n * 4 * 6.0).view(n * 4, 1, 6)  # BLOOM: rows and heads in one axis
    heads = torch.arange(4 * 6.0).view(4, 1, 6)  # MPT: heads alone, as many as there are rows
    mask = torch.arange(n * 3 * 6.0).view(n, 1, 3, 6)
    second = torch.arange(2 * n * 3.0).view(2, n, 3)
    shared = torch.zeros(1, 3)
    return [(alibi, [heads, mask]), {"position_ids": shared, "use_cache": True, "both": (second, mask)} | more]


def test_the_axis_is_what_grew() -> None:
    one = call(N)
    (alibi, (_, mask)), named = one
    second, mask_again = named["both"]
    found = {id(tensor): axis for tensor, axis in row_axes(one, call(N + 1), N)}
    wanted = {
        id(alibi): RowAxis(0, 4),
        id(mask): RowAxis(0, 1),
        id(second): RowAxis(1, 1),
        id(mask_again): RowAxis(0, 1),
    }
    assert found == wanted


def test_rows_are_taken_along_their_axis() -> None:
    index = torch.tensor([3, 1])
    alibi = torch.arange(N * 4 * 6.0).view(N * 4, 1, 6)
    assert torch.equal(RowAxis(0, 4).take(alibi, index), torch.cat([alibi[12:16], alibi[4:8]]))
    second = torch.arange(2 * N * 3.0).view(2, N, 3)
    assert torch.equal(RowAxis(1, 1).take(second, index), second[:, [3, 1]])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (torch.zeros(N, N), torch.zeros(N + 1, N + 1), r"grows from \(4, 4\) to \(5, 5\)"),
        (torch.zeros(N + 2), torch.zeros(N + 3), "grows from"),
        (torch.zeros(N), torch.zeros(2 * N), "grows from"),
        (torch.zeros(N), None, "a Tensor, changes"),
        (N, N + 1, "an int, changes"),
        (object(), object(), "an object, changes"),
        ([1], [1, 2], "a list, changes"),
    ],
    ids=["two axes", "no multiple", "too much", "sometimes", "a count", "unknown", "longer"],
)
def test_what_changes_otherwise_is_refused(before: Any, after: Any, message: str) -> None:
    with pytest.raises(KeditError, match=message.replace("an int", "a int").replace("an object", "a object")):
        row_axes(call(N, odd=before), call(N + 1, odd=after), N)


def test_caches_and_plain_values_are_let_be() -> None:
    one, more = call(N, cache=DynamicCache(), name="sdpa"), call(N + 1, cache=DynamicCache(), name="sdpa")
    assert len(row_axes(one, more, N)) == 3


def test_what_is_shared_stays_shared() -> None:
    x, y = torch.zeros(2), torch.ones(2)
    tree = ({"a": x, "b": [x, 3]}, x)
    first, last = exchanged(tree, {id(x): y})
    assert first["a"] is first["b"][0] is last is y
    assert first["b"][1] == 3
