"""Attention that computes nothing and allocates what a fused kernel allocates, for models on `meta`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "kedit_plan"
_masked = ContextVar("masked", default=False)


@contextmanager
def masked() -> Iterator[None]:
    """Inside, attention has a mask, as in a step of v*: transformers then repeats the heads that queries share."""
    token = _masked.set(True)
    try:
        yield
    finally:
        _masked.reset(token)


class _Fused(torch.autograd.Function):
    """Keeps queries, keys, values, outputs and a number for each query, as flash attention does."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def fused(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """As transformers calls its attention functions."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and _masked.get():
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return _Fused.apply(query, key, value).transpose(1, 2).contiguous(), None


def register() -> str:
    """Makes it known to transformers; its name."""
    AttentionInterface.register(NAME, fused)
    return NAME
