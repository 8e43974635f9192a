"""Replay: run only the layers and tokens that an edit can change (DESIGN, "What makes it fast", 1).

While a value vector at the subject's last token of layer L is optimised, everything below L and every token
before the subject's last one stays as it is. `Replay` runs the unchanging part once: the keys and values of
the prefixes at every layer, and the inputs of layer L. A step then runs layers >= L on the suffixes alone.
The layers are called as the model itself would call them (their own captured arguments, with the cache
exchanged for the constant prefix), so there is no code for any architecture here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kedit.lm import LM
from kedit.prefix import Prefix
from kedit.tokens import pad_right

Site = Literal["input", "attn", "mlp"]


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to replay: its tokens, and the index of the first one that can change."""

    ids: tuple[int, ...]
    start: int

    @property
    def suffix(self) -> tuple[int, ...]:
        """The tokens that can change, the first of them being where the edit is added."""
        return self.ids[self.start :]


class Replay:
    """The constant part of a batch of sequences, ready to be run many times from layer `first` up.

    Args:
        lm: The model, with the weights it should have (capture again after changing them).
        rows: Sequences; every tensor below has them along its first axis.
        first: Index of the first layer that is run at every step, 0 <= first <= n_layers.

    Attributes:
        n_rows: Number of sequences.
        hidden: Inputs of layer `first` at the suffixes' tokens, `[n_rows, S, d_model]`, right-padded.
    """

    def __init__(self, lm: LM, rows: Sequence[Row], first: int) -> None:
        self.lm = lm
        self.first = first
        self.n_rows = len(rows)
        layers = [lm.arch.layer(lm.model, i) for i in range(lm.arch.n_layers)]
        self._layers = layers[first:]
        with torch.no_grad():
            self._prefix = Prefix(lm, [row.ids[: row.start] for row in rows])
            cache = self._prefix.cache()
            ids, real = pad_right([row.suffix for row in rows], lm.pad_id, lm.device)
            start = torch.tensor([row.start for row in rows], device=lm.device)
            positions = (start[:, None] + torch.arange(ids.shape[1], device=lm.device)) * real
            calls = _Calls(self._layers, lm.arch.norm(lm.model), self._prefix.in_tuple)
            with calls.recorded():
                lm.model.base_model(
                    input_ids=ids,
                    attention_mask=torch.cat([self._prefix.mask, real], 1),
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
        self.hidden = calls.inputs[0]
        swap = {id(cache): self._prefix}
        self._args = [_swap(args, swap) for args in calls.args]
        self._kwargs = [_swap(kwargs, swap) for kwargs in calls.kwargs]

    def select(self, index: Tensor) -> Replay:
        """The same replay for some of its rows, `index: [m]` int64."""
        part = copy(self)
        part.n_rows = len(index)
        part.hidden = self.hidden[index]
        part._prefix = self._prefix.select(index)
        if self.n_rows > 1:  # a first axis of 1 means "the same for every row"
            seen: dict[int, Any] = {id(self._prefix): part._prefix}
            part._args = [_rows_of(args, index, self.n_rows, seen) for args in self._args]
            part._kwargs = [_rows_of(kwargs, index, self.n_rows, seen) for kwargs in self._kwargs]
        return part

    def run(self, add: Mapping[Site, Tensor], read: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """Run layers `first` and up on the suffixes, with vectors added at the subject's last token.

        Args:
            add: Site -> `[n_rows, d_model]`, added at every row's first suffix token to the input of layer
                `first` ("input") or to the output of its attention or MLP.
            read: Called as `read(layer, hidden)` with every layer's output `[n_rows, S, d_model]`.

        Returns:
            Output of the last layer before the final norm, `[n_rows, S, d_model]`.
        """
        hidden = self.hidden
        if "input" in add:
            hidden = _add_first(hidden, add["input"])
        with self._adding({site: value for site, value in add.items() if site != "input"}):
            for i, layer in enumerate(self._layers):
                out = layer(hidden, *self._args[i], **self._kwargs[i])
                hidden = out[0] if isinstance(out, tuple) else out
                if read is not None:
                    read(self.first + i, hidden)
        return hidden

    @torch.no_grad()
    def first_keys(self) -> tuple[Tensor, Tensor]:
        """Keys and values of layer `first` at every row's first suffix token, without running further.

        Returns:
            Inputs `[n_rows, d_in]` and outputs `[n_rows, d_model]` of the layer's `mlp_out` (float32).
        """
        module = self.lm.arch.module(self.lm.model, "mlp_out", self.first)
        seen: list[Tensor] = []

        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen.extend(t.reshape(self.n_rows, -1, t.shape[-1])[:, 0].float() for t in (args[0], output))

        handle = module.register_forward_hook(hook)
        try:
            self._layers[0](self.hidden, *self._args[0], **self._kwargs[0])
        finally:
            handle.remove()
        return seen[0], seen[1]

    @torch.no_grad()
    def first_output(self, site: Site) -> Tensor:
        """What a vector given to `run(add={site: ...})` is added to: `[n_rows, d_model]`, float32."""
        if site == "input":
            return self.hidden[:, 0].float()
        seen: list[Tensor] = []

        def hook(_: nn.Module, args: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            seen.append(out.reshape(self.n_rows, -1, out.shape[-1])[:, 0].float())

        handle = self._site(site).register_forward_hook(hook)
        try:
            self._layers[0](self.hidden, *self._args[0], **self._kwargs[0])
        finally:
            handle.remove()
        return seen[0]

    def _site(self, site: Site) -> nn.Module:
        return self.lm.arch.module(self.lm.model, "attn" if site == "attn" else "mlp", self.first)

    @contextmanager
    def _adding(self, add: Mapping[Site, Tensor]) -> Iterator[None]:
        handles = []
        for site, value in add.items():

            def hook(_: nn.Module, args: Any, output: Any, value: Tensor = value) -> Any:
                if isinstance(output, tuple):
                    return (_add_first(output[0], value), *output[1:])
                return _add_first(output, value)

            handles.append(self._site(site).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _add_first(hidden: Tensor, value: Tensor) -> Tensor:
    """`hidden` with `value: [rows, d]` added in float32 at every row's first token (rows may be flattened)."""
    rows = hidden.reshape(value.shape[0], -1, hidden.shape[-1])
    head = (rows[:, :1].float() + value[:, None].float()).to(hidden.dtype)
    return torch.cat([head, rows[:, 1:]], 1).reshape(hidden.shape)


class _Calls:
    """Records how the model calls its layers, without running them."""

    def __init__(self, layers: Sequence[nn.Module], norm: nn.Module, in_tuple: bool) -> None:
        self.layers = layers
        self.in_tuple = in_tuple
        self.norm = norm  # its input is what the last layer leaves, which is all there is when no layer is run
        self.inputs: list[Tensor] = []
        self.args: list[tuple[Any, ...]] = []
        self.kwargs: list[dict[str, Any]] = []

    @contextmanager
    def recorded(self) -> Iterator[None]:
        def pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.inputs.append(hidden_states)
            self.args.append(args)
            self.kwargs.append(kwargs)
            return (hidden_states,) if self.in_tuple else hidden_states

        def before_norm(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.inputs.append(args[0])

        handle = self.norm.register_forward_pre_hook(before_norm)
        own = [vars(layer).get("forward") for layer in self.layers]
        try:
            for layer in self.layers:
                layer.forward = pass_through
            yield
        finally:
            handle.remove()
            for layer, forward in zip(self.layers, own, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward


def _swap(tree: Any, swap: Mapping[int, Any]) -> Any:
    """`tree` with every object whose id is in `swap` exchanged."""
    if isinstance(tree, tuple):
        return tuple(_swap(x, swap) for x in tree)
    if isinstance(tree, dict):
        return {k: _swap(x, swap) for k, x in tree.items()}
    return swap.get(id(tree), tree)


def _rows_of(tree: Any, index: Tensor, n_rows: int, seen: dict[int, Any]) -> Any:
    """`tree` with the first axis of every tensor of `n_rows` rows indexed; shared tensors stay shared."""
    if isinstance(tree, tuple):
        return tuple(_rows_of(x, index, n_rows, seen) for x in tree)
    if isinstance(tree, dict):
        return {k: _rows_of(x, index, n_rows, seen) for k, x in tree.items()}
    if id(tree) in seen:
        return seen[id(tree)]
    if isinstance(tree, Tensor) and tree.ndim > 0 and tree.shape[0] == n_rows:
        seen[id(tree)] = tree[index]
        return seen[id(tree)]
    return tree
