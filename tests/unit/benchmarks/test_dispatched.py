"""The count of operations handed to the device."""

from __future__ import annotations

import torch

from benchmarks.speed.dispatched import Dispatched


def test_views_and_allocations_are_no_work() -> None:
    a = torch.randn(3, 4)
    with Dispatched() as dispatched:
        a.t()[:2].expand(3, 2, 3).detach()
        torch.empty(3)
    assert dispatched.n == 0
    assert dispatched.views.total() >= 4


def test_the_backward_pass_counts() -> None:
    a = torch.randn(3, requires_grad=True)
    with Dispatched() as forward:
        loss = (a * a).sum()
    with Dispatched() as backward:
        loss.backward()
    assert forward.operations == {"aten.mul.Tensor": 1, "aten.sum.default": 1}
    assert backward.operations["aten.mul.Tensor"] == 2


def test_a_list_of_tensors_is_one_operation() -> None:
    tensors = [torch.ones(2), torch.ones(3)]
    with Dispatched() as dispatched:
        torch._foreach_add_(tensors, 1.0)  # pyright: ignore[reportPrivateImportUsage]
    assert dispatched.n == 1


def test_what_the_host_waits_for() -> None:
    a = torch.tensor([1.0, -1.0])
    mask, rows = a > 0, torch.tensor([0])
    with Dispatched() as dispatched:
        a.sum().item()
        a[mask]
        a[rows]
    assert dispatched.waits.total() == 2
