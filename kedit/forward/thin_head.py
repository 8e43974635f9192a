"""The output head at a few places on a CPU: the same product in the order in which its library is fast.

For two to seven rows `hidden @ W.T` takes PyTorch's CPU matrix product up to four times as long as `W @ hidden.T`
(`benchmarks/speed/head_speed.py`). Both read the whole vocabulary's matrix for a handful of rows, a sixth of what a
PAC step on short texts costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_ROWS = range(2, 8)  # with one row, and from eight on, PyTorch's own order is as fast
_PARTED = range(2, 4)  # of these the gradient's product is slow too, and faster by parts of the matrix
_VOCABULARY = 4096  # at least so many rows of the matrix
_PART = 1024  # rows of a part of it in the backward pass


@contextmanager
def thin_head(head: nn.Module, n: int) -> Iterator[None]:
    """Inside, the head computes `n` rows in the order that suits so few; where that does not apply, as ever.

    Args:
        head: The model's output head.
        n: Rows that it will be given.
    """
    if not _applies(head, n):
        yield
        return
    head.forward = lambda hidden: _Thin.apply(hidden.flatten(0, -2), head.weight).unflatten(0, hidden.shape[:-1])
    try:
        yield
    finally:
        del head.__dict__["forward"]


def _applies(head: nn.Module, n: int) -> bool:
    if type(head) is not nn.Linear or head.bias is not None or "forward" in head.__dict__ or n not in _ROWS:
        return False
    if torch.is_autocast_enabled("cpu"):  # its product is another one, in half the bits
        return False
    w = head.weight
    plain = w.device.type == "cpu" and w.dtype == torch.float32 and w.is_contiguous() and not w.requires_grad
    return plain and len(w) >= _VOCABULARY


class _Thin(torch.autograd.Function):
    """`hidden @ weight.T`, differentiable in `hidden` `[n, d]` alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return (weight @ hidden.T).T.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        if len(grad) not in _PARTED:
            return grad @ ctx.weight, None
        whole = len(ctx.weight) // _PART * _PART
        parts = ctx.weight[:whole].view(-1, _PART, ctx.weight.shape[1])
        own = torch.bmm(grad[:, :whole].reshape(len(grad), -1, _PART).transpose(0, 1), parts).sum(0)
        return own + grad[:, whole:] @ ctx.weight[whole:], None
