"""Many private deltas in one forward pass: row `i` of the batch sees delta `i`, no weight is touched.

A linear map `y = W x + b` with `W' = W + left @ right` is `y + left (right x)`: every kind of change says what it does
to the inputs or outputs of a row. With one set of them per row, independent edits are evaluated together and nothing
has to be restored (DESIGN, "Lanes").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kedit.delta.change import LaneStack, OutputPart
from kedit.delta.delta import Delta
from kedit.delta.gate_state import GateHistory
from kedit.delta.kinds import in_order
from kedit.delta.shelf import Shelf


class BatchedDeltas:
    """Deltas of the same model, stacked, ready to be added row by row.

    Args:
        model: The model that will run.
        deltas: One delta per lane. Lanes may touch different modules, rows and columns; ranks and numbers of
            lines are padded with zeros.

    Raises:
        KeditError: A delta is of another model, or has a change that cannot run in lanes.
    """

    def __init__(self, model: nn.Module, deltas: Sequence[Delta]) -> None:
        self.n_lanes = len(deltas)
        self._history = GateHistory(model)
        self._stacks: dict[nn.Module, list[LaneStack]] = {}
        kinds = in_order(kind for delta in deltas for kind in delta.kinds)
        lanes = {kind: [delta.of_kind(kind) for delta in deltas] for kind in kinds}
        for path, module in {p: m for delta in deltas for p, m in delta.modules(model).items()}.items():
            stacks = self._stacks[module] = []
            for kind in kinds:
                parts = {i: own[path] for i, own in enumerate(lanes[kind]) if path in own}
                if parts:
                    stacks += kind.stack(parts, self.n_lanes + 1)  # one lane more: rows of the unedited model

    def shelf(self, lane: int) -> Shelf | None:
        """What a lane puts before prompts; None where it does not (`kedit.delta.prompts`)."""
        stacks = (stack for stacks in self._stacks.values() for stack in stacks)
        return next((stack.shelves[lane] for stack in stacks if lane in stack.shelves), None)

    @contextmanager
    def rows(self, lanes: Tensor) -> Iterator[None]:
        """Inside the block, row `b` of every batch runs on the model edited by lane `lanes[b]`.

        Args:
            lanes: `[batch]` int64; -1 is the unedited model.
        """
        handles: list[RemovableHandle] = []
        try:
            if any(stack.remembers for stacks in self._stacks.values() for stack in stacks):
                handles += self._history.install()
            for module, stacks in self._stacks.items():
                for stack in stacks:
                    if (hook := stack.before(lanes, self._history)) is not None:
                        handles.append(module.register_forward_pre_hook(hook))
                device = next(module.parameters()).device
                parts = [part for stack in stacks if (part := stack.after(lanes, device)) is not None]
                if parts:
                    handles.append(module.register_forward_hook(_AddRows(parts, len(lanes))))
            yield
        finally:
            for handle in handles:
                handle.remove()


class _AddRows:
    """Forward hook: adds every row's parts in float32 (float64 in a float64 model) and rounds once."""

    def __init__(self, parts: Sequence[OutputPart], n_rows: int) -> None:
        self.parts, self.n_rows = parts, n_rows

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].reshape(self.n_rows, -1, args[0].shape[-1])  # some MLPs flatten rows
        y = output.reshape(self.n_rows, -1, output.shape[-1])
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        for part in self.parts:
            y = part(x, y)
        return y.reshape(output.shape).to(output.dtype)
