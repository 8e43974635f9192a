"""Layers that keep nothing for the backward pass but their input, and run once more when it comes to them.

A step of v* then takes a layer's memory instead of all layers', and a third more time: worth it where more lanes fit
and the device is not busy with fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kedit.model.lm import LM


@contextmanager
def recomputing(lm: LM, layers: Iterable[int]) -> Iterator[None]:
    """Inside, the given layers run so. Numbers are the same, bit for bit where the device repeats itself.

    Args:
        lm: The model.
        layers: Layers without hooks that are gone by the time of the backward pass.
    """
    with ExitStack() as stack:
        for index in layers:
            stack.enter_context(_recomputed(lm.arch.layer(lm.model, index)))
        yield


@contextmanager
def _recomputed(layer: nn.Module) -> Iterator[None]:
    own: Callable[..., Any] = layer.forward
    mine = "forward" in vars(layer)  # somebody else's wrapper

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return own(*args, **kwargs)
        return checkpoint(own, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    layer.forward = forward
    try:
        yield
    finally:
        if mine:
            layer.forward = own
        else:
            del layer.forward
