"""A backward pass in spans of layers: the layers below the topmost span run once more when it comes to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kedit.methods.pac.tracing.sites import Site
from kedit.model.lm import LM


def spans(lowest: int, n_layers: int, size: int) -> list[range]:
    """Layers `lowest` to `n_layers - 1` in spans of `size`, the topmost first and the last one what remains."""
    return [range(max(lowest, top - size), top) for top in range(n_layers, lowest, -size)]


@dataclass(frozen=True)
class SpanCost:
    """Estimated memory of a backward pass in spans.

    Args:
        lm: The model.
        site: One of its feed-forward matrices.
        n_layers: Layers that the pass goes through.
        tokens: Tokens of the batch, with padding.
    """

    lm: LM
    site: Site
    n_layers: int
    tokens: int

    def bytes(self, size: int) -> int:
        """With spans of `size` layers: a span's graph, and the inputs of the spans below.

        Measured on the families of kedit.model.architecture, autograd keeps of a layer, with what is captured, 4 M + 6
        D to 4 M + 8 D numbers per token where there is a gate, and up to 5 M + 7 D where there is none.
        """
        wide = 4 if len(self.lm.arch.family.mlp_in) > 1 else 5
        graph = size * (wide * self.site.width + 8 * self.site.depth)
        inputs = (math.ceil(self.n_layers / size) - 1) * self.site.depth
        return self.tokens * self.lm.dtype.itemsize * (graph + inputs)

    def size(self, budget: float) -> int:
        """The most layers in a span that `budget` bytes hold; where it holds none, those that take least."""
        sizes = range(self.n_layers, 0, -1)
        return next((size for size in sizes if self.bytes(size) <= budget), min(sizes, key=self.bytes))


class Rerun:
    """Inputs and arguments of a model's layers in one forward pass, to run spans of them again.

    Args:
        lm: The model.
        parts: Spans, the topmost first.

    Attributes:
        top_input: Input of the topmost span, which the pass's graph begins with; None if it begins further up, in
            the lowest layer of all.
    """

    def __init__(self, lm: LM, parts: list[range]) -> None:
        self.layers = [lm.arch.layer(lm.model, i) for i in range(lm.arch.n_layers)]
        self.top, self.lowest = parts[0].start, parts[-1].start
        self.starts = {part.start for part in parts[1:]}
        self.top_input: Tensor | None = None
        self.inputs: dict[int, Tensor] = {}
        self.others: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Inside, one forward pass of the model is recorded, and its graph begins at the topmost span.

        Gradients are off below it: hooks may add what requires one (delta slices in training).
        """
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())  # until `_record`
            for index in range(self.lowest, self.top + 1):

                def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> Any:
                    return self._record(index, args, kwargs)

                stack.callback(self.layers[index].register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    def run(self, part: range) -> tuple[Tensor, Tensor]:
        """Run a span below the topmost, once: its input and its output `[B, T, D]`, the latter with its graph."""
        start = hidden = self.inputs.pop(part.start).requires_grad_(part.start > self.lowest)
        for index in part:
            others, kwargs = self.others.pop(index)
            out = self.layers[index](hidden, *others, **kwargs)
            hidden = out[0] if isinstance(out, tuple) else out
        return start, hidden

    def _record(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, *others = args
        if index == self.top:
            torch.set_grad_enabled(True)
            if index == self.lowest:
                return None
            self.top_input = hidden.detach().requires_grad_()
            return (self.top_input, *others), kwargs
        self.others[index] = (tuple(others), kwargs)
        if index in self.starts:
            self.inputs[index] = hidden.detach()
        return None
