"""Replay: run only the layers and tokens that an edit can change (DESIGN, "What makes it fast", 1).

While a value vector at the subject's last token of layer L is optimised, everything below L and every token
before the subject's last one stays as it is. `Replay` runs the unchanging part once: the keys and values of
the prefixes at every layer, and the inputs of layer L. A step then runs layers >= L on the suffixes alone.
The layers are called as the model itself would call them (their own captured arguments, with the cache
exchanged for the constant prefix), so there is no code for any architecture here. A vector for the MLP is added
where an edit of its weights adds it, at the output of `mlp_out`: some MLP modules add the residual too (BLOOM, MPT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kedit.forward.compiled_layers import CompiledLayers
from kedit.forward.layer_calls import exchanged, recorded, row_axes
from kedit.forward.prefix_cache import Prefix
from kedit.model.tokenization import pad_right

if TYPE_CHECKING:
    from kedit.model.lm import LM

Role = Literal["output", "attn", "mlp"]


class Site(NamedTuple):
    """Where a vector is added, at the subject's last token.

    Attributes:
        role: The residual stream that leaves the layer ("output"), or the output of its attention ("attn") or of its
            `mlp_out` ("mlp").
        layer: The layer.
    """

    role: Role
    layer: int

    @property
    def first(self) -> int:
        """The lowest layer that runs anew when the vector changes."""
        return self.layer + 1 if self.role == "output" else self.layer


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
        compiled: Run the layers through `torch.compile`. Who hooks a layer's modules must have done so before `run`.

    Attributes:
        n_rows: Number of sequences.
        hidden: Inputs of layer `first` at the suffixes' tokens, `[n_rows, S, d_model]`, right-padded.
    """

    def __init__(self, lm: LM, rows: Sequence[Row], first: int, compiled: bool = False) -> None:
        self.lm = lm
        self.first = first
        self.n_rows = len(rows)
        layers = [lm.arch.layer(lm.model, i) for i in range(lm.arch.n_layers)]
        self._layers = layers[first:]
        with torch.no_grad():
            ids, real = pad_right([row.suffix for row in rows], lm.pad_id, lm.device)
            self._prefix = Prefix(lm, [row.ids[: row.start] for row in rows], ids.shape[1])
            cache = self._prefix.cache()
            start = torch.tensor([row.start for row in rows], device=lm.device)
            positions = (start[:, None] + torch.arange(ids.shape[1], device=lm.device)) * real
            mask = torch.cat([self._prefix.mask, real], 1)
            with recorded(self._layers, lm.arch.norm(lm.model), self._prefix.in_tuple) as calls:
                _call(lm, ids, mask, positions, cache)
            self.hidden = calls.inputs[0] if calls.inputs else calls.norm_inputs[-1]
            one_more = torch.arange(self.n_rows + 1, device=lm.device) % self.n_rows
            of_one = self._prefix.select(one_more[:1]).cache()  # no layer runs, so only its length is looked at
            with recorded(layers, lm.arch.norm(lm.model), self._prefix.in_tuple) as probed:
                _call(lm, ids[one_more], mask[one_more], positions[one_more], of_one)
        self._prefix.drop_below(first)
        self._by_rows = row_axes([calls.args, calls.kwargs], [probed.args[first:], probed.kwargs[first:]], self.n_rows)
        swap = {id(cache): self._prefix}
        self._args = [exchanged(args, swap) for args in calls.args]
        self._kwargs = [exchanged(kwargs, swap) for kwargs in calls.kwargs]
        self._compiled = CompiledLayers(self._layers, first) if compiled else None
        self._own = None if self._compiled is None else self._compiled.arguments(self._prefix, self._args, self._kwargs)

    def select(self, index: Tensor) -> Replay:
        """The same replay for some of its rows, `index: [m]` int64."""
        part = copy(self)
        part.n_rows = len(index)
        part.hidden = self.hidden[index]
        part._prefix = self._prefix.select(index)
        swap: dict[int, Any] = {id(self._prefix): part._prefix}
        swap |= {id(tensor): axis.take(tensor, index) for tensor, axis in self._by_rows}
        part._by_rows = [(swap[id(tensor)], axis) for tensor, axis in self._by_rows]
        part._args = [exchanged(args, swap) for args in self._args]
        part._kwargs = [exchanged(kwargs, swap) for kwargs in self._kwargs]
        if part._compiled is not None:
            part._own = part._compiled.arguments(part._prefix, part._args, part._kwargs)
        return part

    def run(self, add: Mapping[Site, Tensor], read: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """Run layers `first` and up on the suffixes, with vectors added at the subject's last token.

        Args:
            add: Site -> `[n_rows, d_model]`, added at every row's first suffix token. No site may be below `first`.
            read: Called as `read(layer, hidden)` with every layer's output `[n_rows, S, d_model]`.

        Returns:
            Output of the last layer before the final norm, `[n_rows, S, d_model]`.
        """
        if any(site.first < self.first for site in add):
            raise ValueError(f"a vector is added below layer {self.first}, which this replay begins at: {list(add)}")
        streams = {site.layer: value for site, value in add.items() if site.role == "output"}
        hidden = self.hidden
        if self.first - 1 in streams:
            hidden = _add_first(hidden, streams[self.first - 1])
        with self._adding({site: value for site, value in add.items() if site.role != "output"}):
            for i in range(len(self._layers)):
                hidden = self._run_layer(i, hidden)
                if self.first + i in streams:
                    hidden = _add_first(hidden, streams[self.first + i])
                if read is not None:
                    read(self.first + i, hidden)
        return hidden

    def _run_layer(self, i: int, hidden: Tensor) -> Tensor:
        """What leaves the `i`-th of the layers that are run."""
        if self._compiled is not None and self._own is not None and self._compiled.fit(i):
            out = self._compiled(i, hidden, *self._own[i])
        else:
            out = self._layers[i](hidden, *self._args[i], **self._kwargs[i])
        return out[0] if isinstance(out, tuple) else out

    @torch.no_grad()
    def first_keys(self) -> tuple[Tensor, Tensor]:
        """Keys and values of layer `first` at every row's first suffix token, without running further.

        Returns:
            Inputs `[n_rows, d_in]` and outputs `[n_rows, d_model]` of the layer's `mlp_out` (float32).
        """
        module = self.lm.arch.module(self.lm.model, "mlp_out", self.first)
        seen: list[Tensor] = []

        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen.extend(_first_token(t, self.n_rows) for t in (args[0], output))

        handle = module.register_forward_hook(hook)
        try:
            self._layers[0](self.hidden, *self._args[0], **self._kwargs[0])
        finally:
            handle.remove()
        return seen[0], seen[1]

    @torch.no_grad()
    def first_output(self, site: Site) -> Tensor:
        """What a vector given to `run(add={site: ...})` is added to: `[n_rows, d_model]`, float32."""
        if site.first == self.first and site.role == "output":
            return self.hidden[:, 0].float()
        seen: list[Tensor] = []

        def hook(_: nn.Module, args: Any, output: Any) -> None:
            seen.append(_first_token(output[0] if isinstance(output, tuple) else output, self.n_rows))

        handle = site_module(self.lm, site).register_forward_hook(hook)
        try:
            hidden = self.hidden
            for i in range(site.layer - self.first + 1):
                hidden = self._run_layer(i, hidden)
        finally:
            handle.remove()
        return seen[0]

    @contextmanager
    def _adding(self, add: Mapping[Site, Tensor]) -> Iterator[None]:
        handles = []
        for site, value in add.items():

            def hook(_: nn.Module, args: Any, output: Any, value: Tensor = value) -> Any:
                if isinstance(output, tuple):
                    return (_add_first(output[0], value), *output[1:])
                return _add_first(output, value)

            handles.append(site_module(self.lm, site).register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def site_module(lm: LM, site: Site) -> nn.Module:
    """The module whose output a site is."""
    if site.role == "output":
        return lm.arch.layer(lm.model, site.layer)
    return lm.arch.module(lm.model, "attn" if site.role == "attn" else "mlp_out", site.layer)


def _first_token(hidden: Tensor, n_rows: int) -> Tensor:
    """A copy of every row's first token, `[n_rows, d]` float32 (Falcon adds to its MLP's output in place)."""
    return hidden.reshape(n_rows, -1, hidden.shape[-1])[:, 0].float().clone()


def _add_first(hidden: Tensor, value: Tensor) -> Tensor:
    """`hidden` with `value: [rows, d]` added in float32 at every row's first token (rows may be flattened)."""
    rows = hidden.reshape(value.shape[0], -1, hidden.shape[-1])
    head = (rows[:, :1].float() + value[:, None].float()).to(hidden.dtype)
    return torch.cat([head, rows[:, 1:]], 1).reshape(hidden.shape)


def _call(lm: LM, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> None:
    """One pass without the head over the suffixes `ids: [n_rows, S]`, after the prefixes in `cache`."""
    lm.model.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
