"""The change that PAC trains: slices of the feed-forward matrices in float32, beside frozen weights (specs/pac.md 7.1).

The weights themselves never move and have no gradient. A step costs what its slices cost: two thin products per
matrix, and Adam's state for the nodes that were ever selected. The nodes of all matrices are the rows of one tensor, so
that an optimiser's step and a mask take the same few operations whatever their number (kedit/methods/pac/node_rows.py).
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
from kedit.methods.pac.node_rows import NodeRows
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
        index: Site -> its nodes, `[n]` int64 ascending, on the CPU.
        lines: Their changes, `[n, D]` float32 for every site.
        shifts: Changes of the biases: `[n]` for keys (one for each node), `[D]` for value matrices.
    """

    def __init__(self, lm: LM, bias: Bias = "none") -> None:
        self.lm, self.bias = lm, bias
        self.index: dict[Site, Tensor] = {}
        self.lines, self.shifts = NodeRows(lm.device), NodeRows(lm.device)
        self.modules = dict(lm.model.named_modules())
        self._chosen: dict[Part, dict[Site, Tensor]] = {"critical": {}, "contrast": {}}
        self._places: dict[Site, Tensor] = {}

    @property
    def values(self) -> dict[Site, Tensor]:
        """Site -> the changes of its nodes, `[n, D]`: views of what is trained."""
        return self.lines.views()

    @property
    def biases(self) -> dict[Site, Tensor]:
        """Site -> the change of its bias: a view of what is trained."""
        return self.shifts.views()

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser trains."""
        return [*self.lines.parameters, *self.shifts.parameters]

    def named(self) -> list[tuple[Site, nn.Parameter]]:
        """The same by sites, where each has parameters of its own (`part`)."""
        return [*self.lines.by_site().items(), *self.shifts.by_site().items()]

    def part(self) -> None:
        """Gives every site parameters of its own, for learning rates of its own; to be called before any `take`."""
        self.lines.apart = self.shifts.apart = True

    def take(self, selection: Selection, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Trains the nodes of `selection` from now on; those of earlier ones keep their changes.

        Args:
            selection: T+ and T-.
            optimizer: What trains the parameters: it goes on with the new ones, and new nodes start from no state
                beside the step count, as where a dense optimiser is masked.
        """
        old = dict(self.index)
        for site, critical in selection.critical.items():
            both = torch.cat([critical, selection.contrast[site]])
            self.index[site] = torch.cat([old.get(site, both[:0]), both]).unique()
            parts: dict[Part, Tensor] = {"critical": critical, "contrast": selection.contrast[site]}
            for part, nodes in parts.items():
                self._chosen[part][site] = torch.searchsorted(self.index[site], nodes)
        kept = {site: torch.searchsorted(self.index[site], nodes) for site, nodes in old.items()}
        self.lines.grow({site: (len(nodes), site.depth) for site, nodes in self.index.items()}, kept, optimizer)
        keys = {site: len(nodes) for site, nodes in self.index.items() if self._trains(site) and site.kind != "value"}
        whole = {site: site.depth for site in self.index if self._trains(site) and site.kind == "value"}
        sizes = {site: (n,) for site in self.index if (n := keys.get(site) or whole.get(site))}
        kept = {site: torch.arange(site.depth) if site in whole else rows for site, rows in kept.items()}
        self.shifts.grow(sizes, kept, optimizer)
        where = torch.cat([nodes + site.offset for site, nodes in self.index.items()]).to(self.lm.device)
        self._places = dict(zip(self.index, where.split([len(nodes) for nodes in self.index.values()]), strict=True))

    def _trains(self, site: Site) -> bool:
        """Whether its bias, if it has one, is trained."""
        return site.has_bias and (self.bias == "code" or (self.bias == "masked" and site.kind != "value"))

    def mask(self, *parts: Part) -> None:
        """Leaves gradients to the nodes of `parts` alone (and to the value matrices' biases)."""

        def others(site: Site) -> Tensor:
            left = torch.ones(len(self.index[site]), dtype=torch.bool)
            for part in parts:
                left[self._chosen[part].get(site, left.nonzero()[:0, 0])] = False
            return left.nonzero()[:, 0]

        self.lines.clear_gradients(parts, others)
        self.shifts.clear_gradients(parts, lambda site: others(site)[: None if site.kind != "value" else 0])

    @contextmanager
    def installed(self, learn: bool = True) -> Iterator[None]:
        """Inside the block the model runs with the changes, differentiable in them if they `learn`."""
        values, biases, handles = self.values, self.biases, []
        if not learn:
            values, biases = ({site: own.detach() for site, own in found.items()} for found in (values, biases))
        try:
            for site, own in values.items():
                hook = self._hook(site, own, biases.get(site))
                handles.append(self.modules[site.path].register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, site: Site, values: Tensor, bias: Tensor | None) -> Any:
        places = self._places[site]

        def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0]
            if site.kind == "value":
                extra = x.index_select(-1, places).float() @ values
                extra = extra if bias is None else extra + bias
                return (output.float() + extra).to(output.dtype)
            extra = x.float() @ values.T
            extra = extra if bias is None else extra + bias
            return output.float().index_add(-1, places, extra).to(output.dtype)

        return add

    @torch.no_grad()
    def changes(self) -> dict[Site, Change]:
        """A copy of the changes as they are now, for `reset`."""
        values, biases = self.lines.copies(), self.shifts.copies()
        return {site: (nodes, values[site], biases.get(site)) for site, nodes in self.index.items()}

    @torch.no_grad()
    def reset(self, changes: Mapping[Site, Change]) -> None:
        """Puts the changes back to a copy of earlier ones; nodes taken since stay, unchanged again."""
        rows = {site: torch.searchsorted(self.index[site], nodes) for site, (nodes, *_) in changes.items()}
        self.lines.put(rows, {site: values for site, (_, values, _) in changes.items()})
        biases = {site: bias for site, (_, _, bias) in changes.items() if bias is not None}
        rows = {site: torch.arange(site.depth) if site.kind == "value" else rows[site] for site in biases}
        self.shifts.put(rows, biases)

    @torch.no_grad()
    def delta(self) -> Delta:
        """The changes as they are now."""
        slices: dict[str, list[Slices]] = {}
        biases: dict[str, Tensor] = {}
        shifts = self.biases
        for site, values in self.values.items():
            rows, columns = weight(self.modules[site.path]).shape
            part = Slices(self._places[site].clone(), values.detach().clone(), site.axis, (rows, columns))
            slices.setdefault(site.path, []).append(part)
            change = shifts.get(site)
            if change is None:
                continue
            if site.kind == "value":
                biases[site.path] = change.detach().clone()
            else:
                whole = biases.setdefault(site.path, values.new_zeros(rows))
                whole[self._places[site]] = change.detach()
        joined = {path: Slices.add(parts) for path, parts in slices.items()}
        return Delta(joined, {path: BiasChange(change) for path, change in biases.items()})
