"""The constant prefix of a batch: keys and values computed once, prepended by every layer that is replayed."""

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

    Args:
        lm: The model.
        prefixes: What comes before each row, possibly nothing. Equal ones are run once.

    Attributes:
        keys: For every layer `[n_rows, heads, P, head_dim]`, P >= 1.
        values: The same of the values.
        mask: 1 where a prefix token is real, `[n_rows, P]`.
        in_tuple: Whether this model's layers return their output in a tuple.
    """

    is_compileable = False

    def __init__(self, lm: LM, prefixes: Sequence[tuple[int, ...]]) -> None:
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
        self.keys: list[Tensor] = [_gather(block.keys[which], source) for block in blocks]
        self.values: list[Tensor] = [_gather(block.values[which], source) for block in blocks]

    def cache(self) -> DynamicCache:
        """A cache of transformers' own that holds the prefix."""
        cache = DynamicCache()
        for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(keys, values, i)
        return cache

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of prefix and suffix, `[n_rows, heads, P + S, head_dim]`; called by the layers."""
        return torch.cat([self.keys[layer_idx], keys], 2), torch.cat([self.values[layer_idx], values], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length P of the prefix; called by the layers."""
        return self.keys[layer_idx].shape[2]

    def select(self, index: Tensor) -> Prefix:
        """The prefix of some rows, `index: [m]` int64."""
        part = copy(self)
        part.mask = self.mask[index]
        part.keys = [t[index] for t in self.keys]
        part.values = [t[index] for t in self.values]
        return part


def _gather(block: Tensor, source: Tensor) -> Tensor:
    """`block: [n, heads, P, head_dim]` re-ordered along P by `source: [n, P]`."""
    index = source[:, None, :, None].expand(-1, block.shape[1], -1, block.shape[3])
    return block.gather(2, index)
