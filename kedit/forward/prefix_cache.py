"""The constant prefix of a batch: keys and values computed once, with room behind them for those of the suffix.

A step writes the suffix's keys and values into that room, so nothing constant is copied again. The gradient of what was
written is that of the room; the prefix needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kedit.model.tokenization import pad_right

if TYPE_CHECKING:
    from kedit.model.lm import LM


class Prefix:
    """What a layer is given for its cache: prepends the prefix's keys and values, and remembers nothing.

    The prefixes stand at the right end of their block, so that the distance from a suffix token to a
    prefix token is the true one and sliding windows see what they should.

    What `update` returns is written over by the next call of the same layer: a backward pass belongs before the next
    forward pass, and autograd refuses another order.

    Args:
        lm: The model.
        prefixes: What comes before each row, possibly nothing. Equal ones are run once.
        room: Tokens of the suffixes that follow.

    Attributes:
        keys: For every layer `[n_rows, heads, P + room, head_dim]`, P >= 1; the room is written by `update`.
        values: The same of the values.
        mask: 1 where a prefix token is real, `[n_rows, P]`.
        in_tuple: Whether this model's layers return their output in a tuple.
    """

    is_compileable = False

    def __init__(self, lm: LM, prefixes: Sequence[tuple[int, ...]], room: int) -> None:
        index: dict[tuple[int, ...], int] = {}
        which = torch.tensor([index.setdefault(prefix, len(index)) for prefix in prefixes], device=lm.device)
        ids, real = pad_right([prefix or (lm.pad_id,) for prefix in index], lm.pad_id, lm.device)
        raw = DynamicCache()
        kinds: list[bool] = []
        first = lm.arch.layer(lm.model, 0)
        handle = first.register_forward_hook(lambda _, args, out: kinds.append(isinstance(out, tuple)))
        try:
            lm.model.base_model(input_ids=ids, attention_mask=real, past_key_values=raw, use_cache=True)
        finally:
            handle.remove()
        self.in_tuple = kinds[0]
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=lm.device)
        width = ids.shape[1]
        source = torch.arange(width, device=lm.device)[None] - (width - lengths)[:, None]  # [n_rows, P]
        self.mask = (source >= 0).long()
        source = source.clamp(min=0)
        blocks: list[Any] = raw.layers
        self.keys: list[Tensor | None] = []
        self.values: list[Tensor | None] = []
        for block in blocks:
            self.keys.append(_gather(block.keys[which], source, room))
            self.values.append(_gather(block.values[which], source, room))
            block.keys = block.values = None  # a layer at a time, so that not all are held twice

    @property
    def width(self) -> int:
        """P, tokens of the block of prefixes."""
        return self.mask.shape[1]

    def cache(self) -> DynamicCache:
        """A cache of transformers' own that holds the prefix."""
        cache = DynamicCache()
        for i in range(len(self.keys)):
            cache.update(*self.blocks(i), i)
        return cache

    def blocks(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix alone in a layer, `[n_rows, heads, P, head_dim]` each."""
        keys, values = self.keys[layer], self.values[layer]
        if keys is None or values is None:
            raise RuntimeError("this layer of the prefix was dropped")
        return keys[:, :, : self.width], values[:, :, : self.width]

    def drop_below(self, layer: int) -> None:
        """Forgets the layers that nobody will run."""
        for blocks in (self.keys, self.values):
            blocks[:layer] = [None] * min(layer, len(blocks))

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of prefix and suffix, `[n_rows, heads, P + S, head_dim]`; called by the layers."""
        return self._join(self.keys[layer_idx], keys), self._join(self.values[layer_idx], values)

    def _join(self, block: Tensor | None, new: Tensor) -> Tensor:
        if block is None:
            raise RuntimeError("this layer of the prefix was dropped")
        if new.dtype != block.dtype:  # under autocast
            return torch.cat([block[:, :, : self.width], new], 2)
        return _Behind.apply(new, block, self.width)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length P of the prefix; called by the layers."""
        return self.width

    def select(self, index: Tensor) -> Prefix:
        """The prefix of some rows, `index: [m]` int64."""
        part = copy(self)
        part.mask = self.mask[index]
        part.keys = [None if t is None else t[index] for t in self.keys]
        part.values = [None if t is None else t[index] for t in self.values]
        return part


class _Behind(torch.autograd.Function):
    """`block` with `new` written at `start` and behind it along axis 2; the gradient goes to `new` alone."""

    @staticmethod
    def forward(ctx: Any, new: Tensor, block: Tensor, start: int) -> Tensor:
        ctx.start = start
        block[:, :, start:] = new
        return block.detach()  # shares the block's version, so that a backward pass that comes too late is refused

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0][:, :, ctx.start :], None, None


def _gather(block: Tensor, source: Tensor, room: int) -> Tensor:
    """`block: [n, heads, P, head_dim]` re-ordered along P by `source: [n, P]`, and `room` more places behind."""
    index = source[:, None, :, None].expand(-1, block.shape[1], -1, block.shape[3])
    joined = block.new_empty(*block.shape[:2], block.shape[2] + room, block.shape[3])
    joined[:, :, : block.shape[2]] = block.gather(2, index)
    return joined
