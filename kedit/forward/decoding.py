"""Texts that are read on, a token at a time: cache, mask and positions of a batch, all made once.

The cache has room for whole texts from the start, so that a token is written in its place and nothing else is copied.
Which token follows is decided by `kedit.forward.greedy` and `kedit.forward.sampling`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from kedit.delta.gate_state import choose_rows
from kedit.forward.logits import logits_at
from kedit.forward.thin_head import thin_head
from kedit.model.architecture import weight
from kedit.model.families import FAMILIES

if TYPE_CHECKING:
    from kedit.model.lm import LM

_HIDDEN = {"sdpa": -torch.inf, "eager": None}
"""Attention kernels that take a prepared mask, and what they add at a hidden token; None: the lowest number."""

CPU_TOKENS = 2048
MOST_TOKENS = 65_536
_SHARE = 0.4  # of the memory that the weights leave, for the texts of a batch

_ALIGNED = 16  # elements: a mask whose rows begin at multiples of so many is not copied by a GPU's kernels


class Decoding:
    """A batch of texts, the model's cache of them, and room for what they go on with.

    Rows of unlike length are padded on the left, so that every row's next token is the same column.

    Args:
        lm: Model and tokenizer.
        rows: Token ids of each text, each at least one.
        width: Tokens that the longest text will have at most.
    """

    def __init__(self, lm: LM, rows: Sequence[Sequence[int]], width: int) -> None:
        self._lm = lm
        self._cache = text_cache(lm, width)
        self._read = 0
        longest = max(map(len, rows))
        padded = any(len(row) < longest for row in rows)
        self._ids: Tensor | None = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows]).to(lm.device)
        self._real = self._positions = self._mask = None
        if padded:  # else nothing is hidden but what comes later, and positions count from 0
            real = torch.ones(len(rows), width, dtype=torch.long)
            for i, row in enumerate(rows):
                real[i, : longest - len(row)] = 0
            self._real = real.to(lm.device)
            if "position_ids" in inspect.signature(lm.model.forward).parameters:
                self._positions = (self._real.cumsum(1) - 1).clamp(min=0)
            if _takes_prepared(lm, self._cache):
                self._mask = _prepared(lm, self._real)

    def next_logits(self, ids: Tensor | None = None) -> Tensor:
        """Logits `[n, vocab]` of the token that follows each text, in the model's dtype.

        Args:
            ids: What every text goes on with, `[n, 1]`; None at first, when the texts themselves are read.
        """
        first = ids is None
        if ids is None:
            ids, self._ids = self._ids, None
            if ids is None:
                raise ValueError("the texts have been read; next_logits expects the token that follows each")
        start, self._read = self._read, self._read + ids.shape[1]
        known: dict[str, Any] = {"past_key_values": self._cache, "use_cache": True}
        if self._mask is not None and not first:
            known["attention_mask"] = self._mask[..., : self._read]
        elif self._real is not None:
            known["attention_mask"] = self._real[:, : self._read]
        if self._positions is not None:
            known["position_ids"] = self._positions[:, start : self._read]
        if first:
            every = torch.arange(len(ids))
            return logits_at(self._lm, ids, every, torch.full_like(every, -1), **known)[0]
        with thin_head(self._lm.arch.head(self._lm.model), len(ids)):
            return self._lm.model(input_ids=ids, **known).logits[:, -1]

    def choose(self, index: Tensor) -> None:
        """Goes on with some of the rows, in this order; `index: [m]` int64."""
        choose_rows(self._cache, index)
        self._real, self._positions, self._mask = (
            None if t is None else t[index] for t in (self._real, self._positions, self._mask)
        )


def default_batch_tokens(lm: LM) -> int:
    """Tokens, of texts and what they go on with, in one batch that keeps the device busy.

    A step reads all weights for one token of each text, so that a batch is to be large (docs/metrics.md). On a GPU it
    is bounded by the memory that the weights leave, a power of two: not by what is free now, so that a run that is
    made again makes the same batches.
    """
    if lm.device.type != "cuda":
        return CPU_TOKENS
    whole = torch.cuda.get_device_properties(lm.device).total_memory
    own = sum(p.nbytes for p in lm.model.parameters() if p.device == lm.device)
    return bounded_tokens(whole - own, token_bytes(lm))


def bounded_tokens(memory: int, each: int) -> int:
    """The greatest power of two of tokens, from 1 to `MOST_TOKENS`, that takes a share of `memory` bytes at most."""
    most = max(1, int(_SHARE * memory) // each)
    return min(MOST_TOKENS, 1 << (most.bit_length() - 1))


def token_bytes(lm: LM) -> int:
    """What a token of a text takes: its keys and values in all layers, and a layer's activations while it is read."""
    wide = weight(lm.arch.module(lm.model, "mlp_out", 0)).shape[1]
    return lm.model.dtype.itemsize * (2 * lm.arch.n_layers * kv_width(lm) + 4 * (lm.d_model + wide))


def kv_width(lm: LM) -> int:
    """Numbers that a layer's keys (or values) have for a token."""
    config = lm.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads * (getattr(config, "head_dim", None) or lm.d_model // config.num_attention_heads)


def text_cache(lm: LM, width: int) -> DynamicCache:
    """An empty cache of a model's own kind; layers that keep the whole of a text of `width` tokens have room for it.

    Layers that see no farther than a window, where the text is longer, and layers of other kinds are as ever.
    """
    cache = DynamicCache(config=lm.model.config)
    cache.layers = [_Room(width) if _keeps_all(layer, width) else layer for layer in cache.layers]
    return cache


class _Room(DynamicLayer):
    """Keys and values of one layer, `[n, heads, T, head_dim]`: the beginning of memory for `width` tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self._whole: list[Tensor] = []  # memory of keys and of values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:  # the names are transformers'
        """Writes what the tokens read now add, and gives all that there is."""
        start, states = self.get_seq_length(), (key_states, value_states)
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self._whole = [new.new_empty(*new.shape[:-2], self._width, new.shape[-1]) for new in states]
            self.is_initialized = True
        for whole, new in zip(self._whole, states, strict=True):
            whole[..., start:end, :] = new
        self.keys, self.values = (whole[..., :end, :] for whole in self._whole)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only some rows, with their room."""
        length = self.get_seq_length()
        if length:
            self._whole = [whole[indices.to(whole.device)] for whole in self._whole]
            self.keys, self.values = (whole[..., :length, :] for whole in self._whole)


def _keeps_all(layer: Any, width: int) -> bool:
    if type(layer) is DynamicSlidingWindowLayer:
        return width < layer.sliding_window
    return type(layer) is DynamicLayer


def _takes_prepared(lm: LM, cache: DynamicCache) -> bool:
    """Whether all layers hide the same tokens, and the model takes a mask that says which as it is.

    The families of kedit's table do, with transformers' own kernels. Others may need to see the padding (ALiBi).
    """
    config = lm.model.config.get_text_config()
    known = config.model_type in FAMILIES and config._attn_implementation in _HIDDEN
    return known and all(isinstance(layer, _Room) for layer in cache.layers)


def _prepared(lm: LM, real: Tensor) -> Tensor:
    """What attention adds for a new token, `[n, 1, 1, width]`, of `real: [n, width]`: nothing, or so much as hides.

    A mask of truth values would be turned into this one in every layer. Under autocast, where the kernels run in
    another type than the model's, that is left to them.
    """
    kernel, dtype = lm.model.config.get_text_config()._attn_implementation, lm.model.dtype
    if kernel == "sdpa" and torch.is_autocast_enabled(real.device.type):
        return real.bool()[:, None, None]
    low = _HIDDEN.get(kernel or "")
    room = real.new_zeros(len(real), 1, 1, -(-real.shape[1] // _ALIGNED) * _ALIGNED, dtype=dtype)
    mask = room[..., : real.shape[1]]
    return mask.masked_fill_(real[:, None, None] == 0, torch.finfo(dtype).min if low is None else low)
