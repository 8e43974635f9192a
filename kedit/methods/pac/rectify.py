"""The change that PAC trains: slices of the feed-forward matrices in float32, beside frozen weights (specs/pac.md 7.1).

The weights themselves never move and have no gradient. A step costs what its slices cost: two thin products per
matrix, and Adam's state for the nodes that were ever selected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kedit.delta.biases import BiasChange
from kedit.delta.delta import Delta
from kedit.delta.slices import Slices
from kedit.methods.pac.tracing.select import Selection
from kedit.methods.pac.tracing.sites import Site
from kedit.model.architecture import weight
from kedit.model.lm import LM

Bias = Literal["code", "masked", "none"]
Part = Literal["critical", "contrast"]
Change = tuple[Tensor, Tensor, Tensor | None]
"""Nodes of a site `[n]`, their changes `[n, D]`, and its bias's."""


class Rectifier:
    """Trainable slices of every traced matrix, for the union of all nodes selected so far.

    Args:
        lm: The model, frozen.
        bias: Which biases train, where there are any. code: as the released code, those of the selected keys, and the
            value matrices' whole. masked: those of the selected keys alone. none: none.

    Attributes:
        index: Site -> its nodes, `[n]` int64 ascending.
        values: Site -> their changes, `[n, D]` float32.
        biases: Module path -> change of its bias: `[n]` for keys (one for each node), `[D]` for value matrices.
    """

    def __init__(self, lm: LM, bias: Bias = "none") -> None:
        self.lm, self.bias = lm, bias
        self.index: dict[Site, Tensor] = {}
        self.values: dict[Site, nn.Parameter] = {}
        self.biases: dict[Site, nn.Parameter] = {}
        self._rows: dict[Part, dict[Site, Tensor]] = {"critical": {}, "contrast": {}}
        self._modules = dict(lm.model.named_modules())

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser trains."""
        return [*self.values.values(), *self.biases.values()]

    def take(self, selection: Selection, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Trains the nodes of `selection` from now on; those of earlier ones keep their changes.

        Args:
            selection: T+ and T-.
            optimizer: What trains the parameters: it goes on with the new ones, and new nodes start from no state
                beside the step count of their matrix, as where a dense optimiser is masked.
        """
        for site, critical in selection.critical.items():
            both = torch.cat([critical, selection.contrast[site]]).to(self.lm.device)
            old = self.index.get(site, both[:0])
            union = torch.cat([old, both]).unique()
            kept = torch.searchsorted(union, old)
            self.index[site] = union
            if site in self.values:
                self.values[site] = _grown(self.values[site], len(union), kept, optimizer)
            else:
                self.values[site] = nn.Parameter(torch.zeros(len(union), site.depth, device=self.lm.device))
            self._rows["critical"][site] = torch.searchsorted(union, critical.to(self.lm.device))
            self._rows["contrast"][site] = torch.searchsorted(union, selection.contrast[site].to(self.lm.device))
            self._take_bias(site, len(union), kept, optimizer)

    def _take_bias(self, site: Site, n: int, kept: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
        whole = site.kind == "value"
        if not site.has_bias or self.bias == "none" or (whole and self.bias == "masked"):
            return
        if site not in self.biases:
            self.biases[site] = nn.Parameter(torch.zeros(site.depth if whole else n, device=self.lm.device))
        elif not whole:
            self.biases[site] = _grown(self.biases[site], n, kept, optimizer)

    def mask(self, *parts: Part) -> None:
        """Leaves gradients to the nodes of `parts` alone (and to the value matrices' biases)."""
        for site, values in self.values.items():
            rows = torch.cat([self._rows[part][site] for part in parts])
            if len(parts) == 1 and len(rows) == len(values):  # every node, each once
                continue
            bias = self.biases.get(site)
            for parameter in (values, bias if site.kind != "value" else None):
                if parameter is not None and parameter.grad is not None:
                    kept = parameter.grad[rows]
                    parameter.grad.zero_()
                    parameter.grad[rows] = kept

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside the block the model runs with the changes, differentiable in them."""
        handles = []
        try:
            for site in self.values:
                handles.append(self._modules[site.path].register_forward_hook(self._hook(site)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, site: Site) -> Any:
        index, values, bias = self.index[site], self.values[site], self.biases.get(site)

        def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0]
            if site.kind == "value":
                extra = x.index_select(-1, index).float() @ values
                extra = extra if bias is None else extra + bias
                return (output.float() + extra).to(output.dtype)
            extra = x.float() @ values.T
            extra = extra if bias is None else extra + bias
            return output.float().index_add(-1, index + site.offset, extra).to(output.dtype)

        return add

    def changes(self) -> dict[Site, Change]:
        """A copy of the changes as they are now, for `reset`."""
        biases = {site: bias.detach().clone() for site, bias in self.biases.items()}
        return {
            site: (self.index[site], values.detach().clone(), biases.get(site)) for site, values in self.values.items()
        }

    @torch.no_grad()
    def reset(self, changes: Mapping[Site, Change]) -> None:
        """Puts the changes back to a copy of earlier ones; nodes taken since stay, unchanged again."""
        for site, values in self.values.items():
            values.zero_()
            bias = self.biases.get(site)
            if bias is not None:
                bias.zero_()
            if site not in changes:
                continue
            index, old, old_bias = changes[site]
            at = torch.searchsorted(self.index[site], index)
            values[at] = old
            if bias is not None and old_bias is not None:
                bias[at if site.kind != "value" else slice(None)] = old_bias

    @torch.no_grad()
    def delta(self) -> Delta:
        """The changes as they are now."""
        slices: dict[str, list[Slices]] = {}
        biases: dict[str, Tensor] = {}
        for site, values in self.values.items():
            rows, columns = weight(self._modules[site.path]).shape
            part = Slices(self.index[site] + site.offset, values.detach().clone(), site.axis, (rows, columns))
            slices.setdefault(site.path, []).append(part)
            change = self.biases.get(site)
            if change is None:
                continue
            if site.kind == "value":
                biases[site.path] = change.detach().clone()
            else:
                whole = biases.setdefault(site.path, values.new_zeros(rows))
                whole[self.index[site] + site.offset] = change.detach()
        joined = {path: Slices.add(parts) for path, parts in slices.items()}
        return Delta(joined, {path: BiasChange(change) for path, change in biases.items()})


def _grown(old: nn.Parameter, n: int, kept: Tensor, optimizer: torch.optim.Optimizer | None) -> nn.Parameter:
    """`old` with `n` rows, its own at `kept` and the others zero, in the place of `old` in the optimiser."""

    def wide(tensor: Tensor) -> Tensor:
        if tensor.shape != old.shape:
            return tensor  # the step count
        return tensor.new_zeros(n, *old.shape[1:]).index_copy_(0, kept, tensor)

    new = nn.Parameter(wide(old.detach()))
    if optimizer is not None:
        for group in optimizer.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]
        state: Mapping[str, Any] = optimizer.state.pop(old, {})
        if state:
            optimizer.state[new] = {k: wide(v) if isinstance(v, Tensor) else v for k, v in state.items()}
    return new
