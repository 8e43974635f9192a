"""A model whose memory is short: passes with more than so many rows or tokens raise what CUDA raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kedit.model.lm import LM

Where = Literal["forward", "backward"]


@contextmanager
def short_of_memory(
    lm: LM,
    most: int,
    where: Where = "forward",
    layer: int = -1,
    after: int = 0,
    tokens: bool = False,
    graphs_only: bool = True,
) -> Iterator[list[int]]:
    """Inside, a pass through `layer` with more than `most` rows raises `torch.OutOfMemoryError`.

    Args:
        lm: The model.
        most: Rows (tokens, where `tokens`) that fit.
        where: On the way up, or on the way back.
        layer: Where it happens; negative ones count from the top.
        after: Passes that are too large but are let through first.
        tokens: Count tokens.
        graphs_only: Leave passes alone that keep no graph.

    Yields:
        The sizes of the passes that went through, appended to as they happen.
    """
    sizes: list[int] = []
    left = [after]

    def check(size: int) -> None:
        if size > most and left[0] == 0:
            raise torch.OutOfMemoryError("CUDA out of memory (a test)")
        left[0] -= size > most

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if graphs_only and not (torch.is_grad_enabled() and hidden.requires_grad):
            return None
        size = hidden.shape[0] * (hidden.shape[1] if tokens else 1)
        if where == "forward":
            check(size)
        else:

            def back(gradient: Tensor) -> None:
                check(size)

            hidden.register_hook(back)
        sizes.append(size)
        return None

    module = lm.arch.layer(lm.model, layer % lm.arch.n_layers)
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()
