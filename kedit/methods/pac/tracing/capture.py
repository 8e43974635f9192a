"""The two factors of every feed-forward gradient, from layer inputs and output gradients alone (specs/pac.md 7).

A frozen weight's gradient is a product of two thin matrices: for keys (and gates) X = the layer's input and S = dL/d
its output, for values X = dL/d the layer's output and S = its input. In both, G = X^T S `[D, M]` is the gradient with
the nodes as columns. Hooks hand the pair over while the backward pass goes by, so that a pair need not outlive its use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from kedit.errors import KeditError
from kedit.forward.logits import evaluating
from kedit.methods.pac.labels import Labelled
from kedit.methods.pac.tracing.sites import Site
from kedit.methods.pac.tracing.spans import Rerun, SpanCost, spans
from kedit.model.lm import LM

R = TypeVar("R")
Use = Callable[[Site, Tensor, Tensor], object]
"""Called with a site, its X `[T, D]` and its S `[T, M]`, float32."""


def capture(lm: LM, batch: Labelled, sites: Sequence[Site]) -> dict[Site, tuple[Tensor, Tensor]]:
    """X `[T, D]` and S `[T, M]` of every site, float32, by one forward and one backward pass.

    T counts the tokens that can have a gradient: up to a text's last labelled position, no padding; in the last layer
    the labelled positions alone. X^T S is the gradient of `batch.loss(lm)` with respect to the site's matrix.

    Args:
        lm: The model; no weight gets a gradient, and no hook stays.
        batch: Texts and the tokens wanted in them.
        sites: Matrices of `kedit.methods.pac.tracing.sites`.

    Raises:
        KeditError: The gradient is not finite.
    """

    def run(scale: float) -> dict[Site, tuple[Tensor, Tensor]]:
        pairs: dict[Site, tuple[Tensor, Tensor]] = {}
        stream(lm, batch, sites, lambda site, x, s: pairs.setdefault(site, (x, s)), scale)
        return pairs

    def sound(pairs: dict[Site, tuple[Tensor, Tensor]]) -> Tensor:
        return torch.stack([tensor.isfinite().all() for pair in pairs.values() for tensor in pair]).all()

    return finite(lm, run, sound)


def finite(lm: LM, run: Callable[[float], R], sound: Callable[[R], Tensor]) -> R:
    """`run(scale)` with the largest scale of the loss at which its result is finite: `sound`, a bool scalar.

    In float16 small gradients vanish unless the loss is scaled up, and overflow if it is scaled too far.

    Raises:
        KeditError: They are finite at no scale.
    """
    for scale in (4096.0, 64.0, 1.0) if lm.dtype == torch.float16 else (1.0,):
        result = run(scale)
        if bool(sound(result)):
            return result
    raise KeditError(f"{lm.name}: the loss to be traced has no finite gradient; load the model with lm.dtype: float32")


def stream(
    lm: LM, batch: Labelled, sites: Sequence[Site], use: Use, scale: float = 1.0, graph_bytes: float | None = None
) -> None:
    """Call `use` with the pair of every site, from the last layer down, each once.

    Nothing below the lowest site is part of the graph. Where the graph of all layers above would outgrow
    `graph_bytes`, it is made span by span: the first forward pass keeps the graph of the topmost layers that fit,
    and the input of each span below; a span's layers run once more when the backward pass comes to them.

    Args:
        lm: The model.
        batch: Texts and the tokens wanted in them.
        sites: Matrices of `kedit.methods.pac.tracing.sites`.
        use: What takes the pairs. They are lent: what it keeps of them stays in memory.
        scale: Of the loss during the backward pass; the pairs are those of the loss itself.
        graph_bytes: Most that the graph and the spans' inputs should take; None: one graph of all layers. It is an
            estimate, and where it is too small for any spans, those that take least are made.
    """
    batch, kept, kept_last = _needed(batch)
    lowest, n_layers = min(site.layer for site in sites), lm.arch.n_layers
    cost = SpanCost(lm, sites[0], n_layers - lowest, batch.ids.numel())
    size = n_layers if graph_bytes is None else cost.size(graph_bytes)
    top, *below = spans(lowest, n_layers, size)
    taps, rerun = _Taps(lm, sites, use, scale, kept, kept_last), Rerun(lm, [top, *below])
    with evaluating(lm.model), torch.enable_grad(), taps.installed():
        taps.listen_to(top)
        with rerun.recorded():
            loss = batch.loss(lm) * scale
        gradient = taps.backward(loss, None, rerun.top_input)
        for span in below:
            taps.listen_to(span)
            start, output = rerun.run(span)
            gradient = taps.backward(output, gradient, start if start.requires_grad else None)


def _needed(batch: Labelled) -> tuple[Labelled, Tensor | None, Tensor]:
    """The batch without what comes after its last label, and which of its (flattened) tokens have a gradient.

    Returns:
        The narrower batch; in a layer that another follows, `[T]` int64 (None: all); in the last layer, `[T]`.
    """
    width = int(batch.cols.max()) + 1
    last = batch.cols.new_full((len(batch.ids),), -1).scatter_reduce_(0, batch.rows, batch.cols, "amax")
    real = torch.arange(width, device=last.device) <= last[:, None]
    kept = None if bool(real.all()) else real.flatten().nonzero()[:, 0]
    return replace(batch, ids=batch.ids[:, :width]), kept, (batch.rows * width + batch.cols).unique()


def token_counts(batch: Labelled, last_layer: bool) -> list[int]:
    """How many of a pair's T tokens are each text's; they come text by text."""
    _, kept, kept_last = _needed(batch)
    index = kept_last if last_layer else kept
    width = int(batch.cols.max()) + 1
    if index is None:
        return [width] * len(batch.ids)
    return torch.bincount(index // width, minlength=len(batch.ids)).tolist()


class _Taps:
    """Hooks on the sites' modules; a pair goes to `use` as soon as its gradient is there.

    Args:
        lm: The model.
        sites: What is captured.
        use: What takes the pairs.
        scale: What the gradients have been multiplied by.
        kept: The tokens that are handed over, None for all.
        kept_last: The same in the model's last layer.

    Attributes:
        span: The layers that are listened to at present.
    """

    def __init__(
        self, lm: LM, sites: Sequence[Site], use: Use, scale: float, kept: Tensor | None, kept_last: Tensor
    ) -> None:
        self.use, self.scale, self.kept, self.kept_last = use, scale, kept, kept_last
        self.last_layer = lm.arch.n_layers - 1
        self.span = range(0)
        self.sites: dict[nn.Module, list[Site]] = {}
        for site in sites:
            self.sites.setdefault(lm.model.get_submodule(site.path), []).append(site)
        lowest = min(site.layer for site in sites)
        bottom = [site for site in sites if site.layer == lowest]
        self.first = {site.path for site in bottom if site.axis == 0} or {site.path for site in bottom}
        self.leaves: list[tuple[Tensor, Callable[[Tensor], None]]] = []

    def listen_to(self, span: range) -> None:
        """From now on to these layers alone."""
        self.span = span

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside, forward passes of the layers of `span` are listened to."""
        with ExitStack() as stack:
            for module in self.sites:
                stack.callback(module.register_forward_hook(self._hook).remove)
            yield

    def backward(self, output: Tensor, gradient: Tensor | None, start: Tensor | None) -> Tensor | None:
        """Run the graph of `output` down to `start`, or down to the first outputs of the lowest layer."""
        leaves, self.leaves = self.leaves, []
        inputs = [leaf for leaf, _ in leaves] if start is None else [start]
        gradients = torch.autograd.grad(output, inputs, gradient)
        for (_, arrived), found in zip(leaves, gradients, strict=False):
            arrived(found)
        return None if start is None else gradients[0]

    def _hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        sites = self.sites[module]
        if sites[0].layer not in self.span:
            return None
        kept = self.kept_last if sites[0].layer == self.last_layer else self.kept
        waiting = [_rows(args[0].detach(), kept)]

        def arrived(gradient: Tensor) -> None:
            inside, outside = waiting.pop().float(), _rows(gradient, kept).float()
            if self.scale != 1:
                outside = outside / self.scale
            for site in sites:
                self.use(site, *((outside, inside) if site.axis else (inside, outside[:, site.rows])))

        if sites[0].path in self.first:
            output = output.detach().requires_grad_()
            self.leaves.append((output, arrived))
            return output
        output.register_hook(arrived)
        return None


def _rows(states: Tensor, kept: Tensor | None) -> Tensor:
    """`states: [..., width]` as `[T, width]`, the kept tokens alone."""
    flat = states.reshape(-1, states.shape[-1])
    return flat if kept is None else flat[kept]
