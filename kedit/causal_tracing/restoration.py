"""All restorations of one token in one sweep through the layers (ROME's section 2.1, step 3), many rows at a time.

A restoration at (token, layer) leaves everything below the layer and before the token as it is in the corrupted run.
So it enters the sweep as new rows at its first layer, with the tokens from its own on, behind the corrupted run's keys
and values. The layers are called as the model itself would call them, as in `kedit.forward.replay`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from kedit.causal_tracing.runs import Part, Runs, call
from kedit.forward.compiled_layers import LayerPrefix
from kedit.forward.layer_calls import exchanged, recorded, row_axes
from kedit.forward.logits import frozen


class Span(NamedTuple):
    """The layers that a restoration at one layer sets to the clean run's: `low` to `high - 1`."""

    low: int
    high: int


def spans_of(part: Part, n_layers: int, window: int) -> list[Span]:
    """What is restored for each layer that a heat map shows: that state alone, or a window of MLPs or attentions.

    Args:
        part: What is restored.
        n_layers: Of the model.
        window: Layers of a window, cut at both ends of the model; of an even number one more lies below its middle.
    """
    if part == "state":
        return [Span(layer, layer + 1) for layer in range(n_layers)]
    below, above = window // 2, -(-window // 2)
    return [Span(max(0, layer - below), min(n_layers, layer + above)) for layer in range(n_layers)]


class Restorations:
    """Restorations of one token.

    Args:
        runs: The fact's clean and corrupted runs.
        token: The token, from 0, the subject's first.
    """

    def __init__(self, runs: Runs, token: int) -> None:
        lm, self.runs, self.token = runs.lm, runs, token
        self._layers = [lm.arch.layer(lm.model, i) for i in range(lm.arch.n_layers)]
        self._at = at = runs.fact.first + token
        ids = torch.tensor([runs.fact.ids[at:]], device=lm.device)
        own = self._cache(1)
        with frozen(lm.model):
            with recorded(self._layers, lm.arch.norm(lm.model), runs.in_tuple) as calls:
                call(lm, ids, at, own)
            with recorded(self._layers, lm.arch.norm(lm.model), runs.in_tuple) as twice:
                call(lm, ids.repeat(2, 1), at, self._cache(2))
        self._own, self._args, self._kwargs = id(own), calls.args, calls.kwargs
        self._by_rows = row_axes([calls.args, calls.kwargs], [twice.args, twice.kwargs], 1)

    def probabilities(self, part: Part, spans: Sequence[Span], samples: Sequence[int]) -> Tensor:
        """Probability of the answer for every restoration.

        Args:
            part: What is restored.
            spans: Layers of each, the lower ones first.
            samples: Corrupted runs to restore in.

        Returns:
            `[len(samples), len(spans)]`, on the model's device.
        """
        runs, n = self.runs, len(samples)
        index = torch.tensor(samples, device=runs.lm.device)
        starts = [span.high if part == "state" else span.low for span in spans]
        rows = runs.inputs[0].new_empty(0, *runs.inputs[0][:, self.token :].shape[1:])
        entered = 0  # restorations that are in `rows`, `n` rows each
        with frozen(runs.lm.model):
            for layer in range(len(self._layers) + 1):
                entering = starts[entered:].count(layer)
                if entering:
                    fresh = runs.inputs[layer][index, self.token :].repeat(entering, 1, 1)
                    if part == "state":
                        fresh[:, 0] = runs.clean["state"][layer - 1][self.token]
                    rows = torch.cat([rows, fresh])
                    entered += entering
                if entered and layer < len(self._layers):
                    held = [span.low <= layer < span.high for span in spans[:entered]] if part != "state" else []
                    rows = self._run(layer, rows, index.repeat(entered), part, held)
            return runs.probability(rows[:, -1]).unflatten(0, (len(spans), n)).T

    def _run(self, layer: int, rows: Tensor, samples: Tensor, part: Part, held: Sequence[bool]) -> Tensor:
        """What leaves a layer; `held` says of each restoration whether the layer's own part is set to the clean one."""
        first = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        swap: dict[int, Any] = {id(tensor): axis.take(tensor, first) for tensor, axis in self._by_rows}
        keys, values = (blocks[layer][samples, :, : self._at] for blocks in (self.runs.keys, self.runs.values))
        swap[self._own] = LayerPrefix(keys, values)
        args, kwargs = (exchanged(tree[layer], swap) for tree in (self._args, self._kwargs))
        with self._holding(layer, part, held):
            out = self._layers[layer](rows, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    @contextmanager
    def _holding(self, layer: int, part: Part, held: Sequence[bool]) -> Iterator[None]:
        """Inside, the layer's part is the clean run's at the token, in the rows of the restorations that hold it."""
        if not any(held):
            yield
            return
        clean = self.runs.clean[part][layer][self.token]
        chosen = torch.tensor([i for i, holds in enumerate(held) if holds], device=clean.device)

        def hook(_: nn.Module, args: Any, output: Any) -> Any:
            whole = output[0] if isinstance(output, tuple) else output
            new = whole.reshape(len(held), -1, self._length, whole.shape[-1]).clone()
            new[chosen, :, 0] = clean
            new = new.reshape(whole.shape)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = self.runs.modules[part][layer].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @property
    def _length(self) -> int:
        return len(self.runs.fact.ids) - self._at

    def _cache(self, n_rows: int) -> DynamicCache:
        """A cache of transformers' own that holds what stands before the token; no layer looks into it."""
        cache = DynamicCache()
        if self._at:
            for i, (keys, values) in enumerate(zip(self.runs.keys, self.runs.values, strict=True)):
                one, other = (block[:1, :, : self._at].expand(n_rows, -1, -1, -1) for block in (keys, values))
                cache.update(one, other, i)
        return cache
