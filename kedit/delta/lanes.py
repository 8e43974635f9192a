"""Many private deltas in one forward pass: row `i` of the batch sees delta `i`, no weight is touched.

A linear map `y = W x + b` with `W' = W + left @ right` is `y + left (right x)`; changed rows of W add to a few
entries of y, changed columns read a few entries of x. With one set of them per row, independent edits are evaluated
together and nothing has to be restored (DESIGN, "Lanes"). Pathways act on the rows of their own lane alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kedit.delta.delta import Delta, Factors
from kedit.delta.gate_state import GateContext, GateHistory
from kedit.delta.pathway import PathwayRouter
from kedit.delta.slices import Slices

_Part = Callable[[Tensor, Tensor], Tensor]
"""What one kind of change does: inputs x `[batch, T, d_in]` and outputs so far y `[batch, T, d_out]` -> y."""


class BatchedDeltas:
    """Deltas of the same model, stacked, ready to be added row by row.

    Args:
        model: The model that will run.
        deltas: One delta per lane. Lanes may touch different modules, rows and columns; ranks and numbers of
            lines are padded with zeros.

    Raises:
        KeditError: A delta is of another model.
    """

    def __init__(self, model: nn.Module, deltas: Sequence[Delta]) -> None:
        self.n_lanes = len(deltas)
        self._openings = GateHistory(model)
        self._stacks: dict[nn.Module, list[_FactorStack | _SliceStack | _BiasStack]] = {}
        self._banks: dict[nn.Module, dict[int, PathwayRouter]] = {}
        for path, module in {p: m for delta in deltas for p, m in delta.modules(model).items()}.items():
            banks = {i: PathwayRouter(delta.pathways[path]) for i, delta in enumerate(deltas) if path in delta.pathways}
            if banks:
                self._banks[module] = banks
            changes = {i: delta.changes[path] for i, delta in enumerate(deltas) if path in delta.changes}
            slices = {i: delta.slices[path] for i, delta in enumerate(deltas) if path in delta.slices}
            biases = {i: delta.biases[path] for i, delta in enumerate(deltas) if path in delta.biases}
            stacks: list[_FactorStack | _SliceStack | _BiasStack] = []
            # one lane more, all zeros: rows of the unedited model
            if changes:
                stacks.append(_FactorStack(changes, self.n_lanes + 1))
            for axis in (0, 1):
                lines = {i: part for i, part in slices.items() if part.axis == axis}
                if lines:
                    stacks.append(_SliceStack(lines, self.n_lanes + 1))
            if biases:
                stacks.append(_BiasStack(biases, self.n_lanes + 1))
            if stacks:
                self._stacks[module] = stacks

    @contextmanager
    def rows(self, lanes: Tensor) -> Iterator[None]:
        """Inside the block, row `b` of every batch runs on the model edited by lane `lanes[b]`.

        Args:
            lanes: `[batch]` int64; -1 is the unedited model.
        """
        handles = []
        if any(bank.remembers for banks in self._banks.values() for bank in banks.values()):
            handles += self._openings.install()
        for module, banks in self._banks.items():
            handles.append(module.register_forward_pre_hook(_MoveRows(banks, lanes, self._openings)))
        index = torch.where(lanes < 0, self.n_lanes, lanes)
        for module, stacks in self._stacks.items():
            device = next(module.parameters()).device
            hook = _AddRows([stack.rows(index, device) for stack in stacks], len(lanes))
            handles.append(module.register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _MoveRows:
    """Forward pre-hook: the keys of every row pass the pathways of its lane."""

    def __init__(self, banks: dict[int, PathwayRouter], lanes: Tensor, openings: GateHistory) -> None:
        self.banks, self.lanes, self.openings = banks, lanes, openings
        self.present = [lane for lane in lanes.unique().tolist() if lane in banks]
        self.remembers = any(banks[lane].remembers for lane in self.present)

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        keys = args[0].reshape(len(self.lanes), -1, args[0].shape[-1])
        moved = keys
        texts = self.openings.texts(module, keys.shape[:2]) if self.remembers else GateContext()
        seen: list[tuple[Tensor, Tensor]] = []  # rows of a lane, and how wide its gates have been in them
        for lane in self.present:
            rows, bank = (self.lanes == lane).nonzero()[:, 0].to(keys.device), self.banks[lane]
            own = texts.rows(rows, len(bank.pathways))
            native = keys[rows]
            new = bank(native, own)
            if new is not native:
                moved = moved.index_copy(0, rows, new)
            if own.widest is not None:
                seen.append((rows, own.widest))
        if seen:
            together = keys.new_zeros(len(keys), max(len(bank.pathways) for bank in self.banks.values())).float()
            for rows, widest in seen:
                together[rows, : widest.shape[1]] = widest
            self.openings.note(module, together)
        return (moved.reshape(args[0].shape), *args[1:])


class _AddRows:
    """Forward hook: adds every row's parts in float32 (float64 in a float64 model) and rounds once."""

    def __init__(self, parts: Sequence[_Part], n_rows: int) -> None:
        self.parts, self.n_rows = parts, n_rows

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].reshape(self.n_rows, -1, args[0].shape[-1])  # some MLPs flatten rows
        y = output.reshape(self.n_rows, -1, output.shape[-1])
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        for part in self.parts:
            y = part(x, y)
        return y.reshape(output.shape).to(output.dtype)


class _FactorStack:
    """`y += left_b (right_b x)`."""

    def __init__(self, parts: dict[int, Factors], n: int) -> None:
        first, rank = next(iter(parts.values())), max(part.rank for part in parts.values())
        self.left = first.left.new_zeros(n, rank, first.left.shape[0])
        self.right = first.right.new_zeros(n, first.right.shape[1], rank)
        for i, part in parts.items():
            self.left[i, : part.rank] = part.left.T
            self.right[i, :, : part.rank] = part.right.T

    def rows(self, lanes: Tensor, device: torch.device) -> _Part:
        lanes = lanes.to(self.left.device)
        left, right = self.left[lanes].to(device), self.right[lanes].to(device)  # [batch, r, d_out], [batch, d_in, r]

        def part(x: Tensor, y: Tensor) -> Tensor:
            return y + torch.bmm(torch.bmm(x.to(y.dtype), right.to(y.dtype)), left.to(y.dtype))

        return part


class _SliceStack:
    """`y[index_b] += values_b x` (rows) or `y += values_b^T x[index_b]` (columns); all of one axis."""

    def __init__(self, parts: dict[int, Slices], n: int) -> None:
        first, size = next(iter(parts.values())), max(len(part.index) for part in parts.values())
        self.axis = first.axis
        self.index = first.index.new_zeros(n, size)
        self.values = first.values.new_zeros(n, size, first.values.shape[1])
        for i, part in parts.items():
            self.index[i, : len(part.index)] = part.index
            self.values[i, : len(part.index)] = part.values

    def rows(self, lanes: Tensor, device: torch.device) -> _Part:
        lanes = lanes.to(self.values.device)
        index = self.index[lanes].to(device)[:, None]  # [batch, 1, n]

        def part(x: Tensor, y: Tensor) -> Tensor:
            # gathered anew in every forward pass: for all modules of a large model at once they would fill the memory
            values = self.values[lanes].to(device, y.dtype)  # [batch, n, width]
            at = index.expand(-1, x.shape[1], -1)
            if self.axis == 0:
                return y.scatter_add(2, at, torch.bmm(x.to(y.dtype), values.transpose(1, 2)))
            return torch.baddbmm(y, x.gather(2, at).to(y.dtype), values)

        return part


class _BiasStack:
    """`y += b_b`."""

    def __init__(self, parts: dict[int, Tensor], n: int) -> None:
        first = next(iter(parts.values()))
        self.biases = first.new_zeros(n, len(first))
        for i, part in parts.items():
            self.biases[i] = part

    def rows(self, lanes: Tensor, device: torch.device) -> _Part:
        biases = self.biases[lanes.to(self.biases.device)].to(device)[:, None]  # [batch, 1, d_out]

        def part(x: Tensor, y: Tensor) -> Tensor:
            return y + biases

        return part
