"""Rows of numbers that belong to sites, as one trained tensor: what grows, is masked, kept and put back.

One tensor makes an optimiser's step, a mask or a copy the same few operations for any number of matrices. Where sites
have learning rates of their own, each has a tensor of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kedit.methods.pac.tracing.sites import Site


class NodeRows:
    """Trained rows of some sites.

    Args:
        device: Where they are.

    Attributes:
        parameters: All rows in one, `[N, ...]` float32, in the order of the sites; or one for every site.
        apart: Whether every site has a parameter of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.apart = device, False
        self.parameters: list[nn.Parameter] = []
        self._sizes: dict[Site, int] = {}
        self._cleared: dict[Hashable, list[Tensor]] = {}

    def whole(self) -> Tensor:
        """All rows in one tensor `[N, ...]`, with their graph."""
        return self.parameters[0] if len(self.parameters) == 1 else torch.cat(list(self.parameters))

    def views(self) -> dict[Site, Tensor]:
        """Each site's rows: views of the parameter or the parameter itself."""
        if self.apart:
            return dict(zip(self._sizes, self.parameters, strict=True))
        return self._split(self.parameters[0]) if self._sizes else {}

    def by_site(self) -> dict[Site, nn.Parameter]:
        """Each site's parameter, where it has one of its own; otherwise nothing."""
        return dict(zip(self._sizes, self.parameters, strict=True)) if self.apart else {}

    def gradients(self) -> dict[Site, Tensor]:
        """Each site's rows of the gradient, as far as there is one."""
        if self.apart:
            return {site: own.grad for site, own in self.by_site().items() if own.grad is not None}
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return self._split(grads[0]) if grads else {}

    def grow(
        self,
        shapes: Mapping[Site, tuple[int, ...]],
        kept: Mapping[Site, Tensor],
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        """Makes room for more rows, which are zero.

        Args:
            shapes: Site -> the shape of its rows from now on; all but the first axis are the same for all sites.
            kept: Site -> where its rows of before are among them, `[n]` on the CPU.
            optimizer: What trains the parameters; it goes on with the new ones.
        """
        before, self._sizes = self._sizes, {site: shape[0] for site, shape in shapes.items()}
        self._cleared.clear()
        if not shapes:
            return
        width = next(iter(shapes.values()))[1:]
        old = [*self.parameters, *(None for _ in range(len(self._blocks()) - len(self.parameters)))]
        self.parameters = [
            _grown(parameter, (sum(self._sizes[site] for site in block), *width), rows, optimizer, self.device)
            for parameter, block, rows in zip(old, self._blocks(), self._placed(kept, before), strict=True)
        ]

    def clear_gradients(self, key: Hashable, rows: Callable[[Site], Tensor]) -> None:
        """Sets the gradients of some rows to zero.

        Args:
            key: A name for these rows, under which they are kept until `grow`.
            rows: Gives a site's, `[n]` on the CPU.
        """
        if key not in self._cleared:
            self._cleared[key] = self._placed({site: rows(site) for site in self._sizes}, self._sizes)
        for parameter, others in zip(self.parameters, self._cleared[key], strict=True):
            if parameter.grad is not None and len(others):
                parameter.grad.index_fill_(0, others, 0.0)

    def copies(self) -> dict[Site, Tensor]:
        """A copy of every site's rows."""
        copied = [parameter.detach().clone() for parameter in self.parameters]
        if self.apart or not copied:
            return dict(zip(self._sizes, copied, strict=True))
        return self._split(copied[0])

    @torch.no_grad()
    def put(self, rows: Mapping[Site, Tensor], values: Mapping[Site, Tensor]) -> None:
        """Sets some rows of some sites, and all others to zero.

        Args:
            rows: Site -> which of its rows, `[n]` on the CPU.
            values: Site -> their values.
        """
        for parameter, block, at in zip(self.parameters, self._blocks(), self._placed(rows, rows), strict=True):
            parameter.zero_()
            own = [values[site] for site in block if site in rows]
            if own:
                parameter.index_copy_(0, at, torch.cat(own))

    def _split(self, tensor: Tensor) -> dict[Site, Tensor]:
        return dict(zip(self._sizes, tensor.split(list(self._sizes.values())), strict=True))

    def _blocks(self) -> list[list[Site]]:
        """The sites of every parameter."""
        return [[site] for site in self._sizes] if self.apart else [list(self._sizes)] if self._sizes else []

    def _placed(self, rows: Mapping[Site, Tensor], among: Mapping[Site, Any]) -> list[Tensor]:
        """Rows of the sites `among` as rows of their parameters, on the device: one tensor for each parameter."""
        found = []
        for block in self._blocks():
            start, parts = 0, [torch.empty(0, dtype=torch.long)]
            for site in block:
                if site in among:
                    parts.append(rows[site] + start)
                start += self._sizes[site]
            found.append(torch.cat(parts).to(self.device))
        return found


def _grown(
    old: nn.Parameter | None,
    shape: tuple[int, ...],
    kept: Tensor,
    optimizer: torch.optim.Optimizer | None,
    device: torch.device,
) -> nn.Parameter:
    """A parameter of `shape` with the rows of `old` at `kept` and zeros elsewhere, in its place in the optimiser."""
    if old is None:
        return nn.Parameter(torch.zeros(shape, device=device))

    def wide(tensor: Tensor) -> Tensor:
        if tensor.shape != old.shape:
            return tensor  # the step count
        return tensor.new_zeros(shape).index_copy_(0, kept, tensor)

    new = nn.Parameter(wide(old.detach()))
    if optimizer is not None:
        for group in optimizer.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]
        state: Mapping[str, Any] = optimizer.state.pop(old, {})
        if state:
            optimizer.state[new] = {k: wide(v) if isinstance(v, Tensor) else v for k, v in state.items()}
    return new
