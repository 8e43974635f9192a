"""The changes of all sides as one stack `[sites, nodes, D]`, run with few operations where a device waits for launches.

`Rectifier.installed` adds each side's change to a module's output by autograd. Here the sides' nodes of a matrix are
one set, products are in the model's own type and in place, and the frozen matrix's own gradient is taken in the same
backward step. The gradients of the nodes of all matrices are one batched product in float32, at the end of the backward
pass. The numbers are the same but for rounding; in half precision the float32 changes are rounded to the model's type
where they are multiplied, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from kedit.methods.pac.tracing.sites import Site
from kedit.model.architecture import weight

_AT_ONCE = 2**25  # numbers of the wider factor in a batched product: 128 MB
_Factors = tuple[Tensor, Tensor]
"""Of a site's gradient: one column for each node, `[T, P]`, and `[T, D]`."""


class Layout:
    """Where the rows of some sides are in a stack `[S, P, D]`: S sites, P nodes of each at most.

    Args:
        sides: Site -> its nodes, of every side.
        device: Where the stack is.

    Attributes:
        sites: In the order of the stack.
        places: Rows or columns of the nodes in the module, `[S, P]`; where a site has fewer, one of its own again,
            whose change is zero.
        orders: For every side, which of its rows is where, `[S * P]`; one beyond the last: none.
        backs: For every side, where in the stack its rows are, `[N]`.
    """

    def __init__(self, sides: Sequence[Mapping[Site, Tensor]], device: torch.device) -> None:
        self.sites = list(dict.fromkeys(site for side in sides for site in side))
        unions = [torch.cat([side[site] for side in sides if site in side]).unique() for site in self.sites]
        self.n, self.most = len(self.sites), max(1, *(len(nodes) for nodes in unions))
        places = torch.zeros(self.n, self.most, dtype=torch.long)
        for row, site, nodes in zip(places, self.sites, unions, strict=True):
            row.fill_(site.offset + int(nodes[0]) if len(nodes) else site.offset)
            row[: len(nodes)] = nodes + site.offset
        self.places = places.to(device)
        self.orders, self.backs = [], []
        for side in sides:
            backs = [
                torch.searchsorted(union, side[site]) + i * self.most
                for i, (site, union) in enumerate(zip(self.sites, unions, strict=True))
                if site in side
            ]
            back = torch.cat(backs) if backs else torch.empty(0, dtype=torch.long)
            order = torch.full((self.n * self.most,), len(back))
            order[back] = torch.arange(len(back))
            self.orders.append(order.to(device))
            self.backs.append(back.to(device))


class _Store:
    """Factors of the sites' gradients, as a backward pass leaves them.

    Attributes:
        calls: How often each site was run.
        passes: For every forward pass, site's number -> factors.
    """

    def __init__(self) -> None:
        self.calls: dict[int, int] = {}
        self.passes: list[dict[int, _Factors]] = []

    def next_pass(self, number: int) -> dict[int, _Factors]:
        """What takes the factors of a site that is run now."""
        at = self.calls.get(number, 0)
        self.calls[number] = at + 1
        while len(self.passes) <= at:
            self.passes.append({})
        return self.passes[at]

    def gradient(self, layout: Layout, like: Tensor) -> Tensor:
        """Gradients of the stack, `[S, P, D]` float32; the factors are gone afterwards."""
        total: Tensor | None = None
        while self.passes:
            factors = self.passes.pop()
            part = torch.empty(layout.n, layout.most, like.shape[-1], device=like.device)
            counts = [len(factors[i][0]) if i in factors else 0 for i in range(layout.n)]
            for tokens, run in groupby(range(layout.n), counts.__getitem__):
                numbers = list(run)
                if not tokens:
                    part[numbers[0] : numbers[-1] + 1].zero_()
                    continue
                size = max(1, _AT_ONCE // (tokens * like.shape[-1]))
                for start in range(numbers[0], numbers[-1] + 1, size):
                    end = min(start + size, numbers[-1] + 1)
                    narrow, wide = zip(*(factors.pop(i) for i in range(start, end)), strict=True)
                    left, right = torch.stack(narrow).float(), torch.stack(wide).float()
                    torch.bmm(left.transpose(1, 2), right, out=part[start:end])
            total = part if total is None else total + part
        assert total is not None
        return total


class _Stack(torch.autograd.Function):
    """The sides' rows -> the stack in the model's type; backward, the batched gradient of what was run with it.

    The sites give no gradient to the stack: they leave factors in the store, and this step comes after all of them.
    """

    @staticmethod
    def forward(ctx: Any, layout: Layout, store: _Store, dtype: torch.dtype, *sides: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.layout, ctx.store, ctx.like = layout, store, sides[0][:0]
        total: Tensor | None = None
        for own, order in zip(sides, layout.orders, strict=True):
            rows = torch.cat([own, own.new_zeros(1, own.shape[1])]).index_select(0, order)
            total = rows if total is None else total.add_(rows)
        assert total is not None
        return total.view(layout.n, layout.most, -1).to(dtype)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.store.passes:
            return (None,) * len(ctx.needs_input_grad)
        rows = ctx.store.gradient(ctx.layout, ctx.like).flatten(0, 1)
        needed = ctx.needs_input_grad[3:]
        grads = [rows.index_select(0, b) if n else None for n, b in zip(needed, ctx.layout.backs, strict=True)]
        return None, None, None, *grads


class _AddNodes(torch.autograd.Function):
    """A site's output with its nodes' changes, in place; backward, that of the frozen matrix too, where it is given.

    Keys: `y[nodes] += V x`. Values: `y += V^T x[nodes]`. V `[P, D]`, x and y `[..., width]`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, nodes: Tensor, places: Tensor, axis: int, w: Tensor | None, factors: Any
    ) -> Tensor:
        inside, out = x.reshape(-1, x.shape[-1]), y.detach()
        flat = out.view(-1, out.shape[-1])
        if axis == 0:
            flat.index_add_(1, places, inside @ nodes.T)
        else:
            inside = inside.index_select(1, places)
            flat.addmm_(inside, nodes)
        ctx.save_for_backward(inside, nodes.detach(), places)
        ctx.axis, ctx.w, ctx.factors, ctx.shape = axis, w, factors, x.shape
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inside, nodes, places = ctx.saved_tensors
        outside = grads[0].reshape(-1, grads[0].shape[-1])
        thin = outside.index_select(1, places) if ctx.axis == 0 else None
        if ctx.factors is not None:
            take, number = ctx.factors
            take[number] = (inside, outside) if thin is None else (thin, inside)
        grad = None
        if ctx.needs_input_grad[0]:
            if thin is not None:
                grad = thin @ nodes if ctx.w is None else (outside @ ctx.w).addmm_(thin, nodes)
            else:
                grad = outside.new_zeros(len(outside), ctx.shape[-1]) if ctx.w is None else outside @ ctx.w
                grad.index_add_(1, places, outside @ nodes.T)
            grad = grad.view(ctx.shape)
        return grad, grads[0] if ctx.w is None else None, None, None, None, None, None


@contextmanager
def stacked(
    modules: Mapping[str, nn.Module], layout: Layout, sides: Sequence[Tensor], dtype: torch.dtype
) -> Iterator[None]:
    """Inside the block the model runs with the changes of all sides, differentiable in them.

    The modules are frozen linear maps that run without a graph of their own meanwhile: hooks on them that were there
    before see inputs without one.

    Args:
        modules: Of the model, by path.
        layout: Where the rows are.
        sides: Rows of every side of `layout`, `[N, D]` float32.
        dtype: The model's.
    """
    store = _Store()
    stack = _Stack.apply(layout, store, dtype, *sides)
    learns, parts = stack.requires_grad, list(zip(stack.unbind(0), layout.places.unbind(0), strict=True))
    by_path: dict[str, list[int]] = {}
    for number, site in enumerate(layout.sites):
        by_path.setdefault(site.path, []).append(number)

    def hooks(module: nn.Module, numbers: list[int]) -> tuple[Any, Any]:
        w = weight(module)
        inputs: list[Tensor] = []

        def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            inputs.append(args[0])
            return (args[0].detach(), *args[1:])

        def after(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs.pop()
            for place, number in enumerate(numbers):
                nodes, places = parts[number]
                factors = (store.next_pass(number), number) if learns else None
                own = None if place else w
                output = _AddNodes.apply(x, output, nodes, places, layout.sites[number].axis, own, factors)
            return output

        return before, after

    with ExitStack() as handles:
        for path, numbers in by_path.items():
            before, after = hooks(modules[path], numbers)
            handles.callback(modules[path].register_forward_pre_hook(before).remove)
            handles.callback(modules[path].register_forward_hook(after).remove)
        yield
