"""Many private deltas in one forward pass: row `i` of the batch sees delta `i`, no weight is touched.

A linear map `y = W x` with `W' = W + left @ right` is `y + left (right x)`; with one pair of factors per
row, independent edits are evaluated together and nothing has to be restored (DESIGN, "Lanes"). Pathways act on
the rows of their own lane alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kedit.delta import Delta
from kedit.pathway import Bank


class LaneBank:
    """Deltas of the same shape, stacked, ready to be added row by row.

    Args:
        model: The model that will run.
        deltas: One delta per lane. Lanes may touch different modules; ranks are padded with zeros.
    """

    def __init__(self, model: nn.Module, deltas: Sequence[Delta]) -> None:
        self.n_lanes = len(deltas)
        self._stacks: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._banks: dict[nn.Module, dict[int, Bank]] = {}
        for path, module in {p: m for delta in deltas for p, m in delta.modules(model).items()}.items():
            banks = {i: Bank(delta.pathways[path]) for i, delta in enumerate(deltas) if path in delta.pathways}
            if banks:
                self._banks[module] = banks
            if not any(path in delta.changes for delta in deltas):
                continue
            parts = [delta.changes.get(path) for delta in deltas]
            first = next(p for p in parts if p is not None)
            rank = max(p.rank for p in parts if p is not None)
            # one lane more, all zeros: rows of the unedited model
            left = first.left.new_zeros(self.n_lanes + 1, first.left.shape[0], rank)
            right = first.right.new_zeros(self.n_lanes + 1, rank, first.right.shape[1])
            for i, part in enumerate(parts):
                if part is not None:
                    left[i, :, : part.rank] = part.left
                    right[i, : part.rank] = part.right
            self._stacks[module] = (left, right)

    @contextmanager
    def rows(self, lanes: Tensor) -> Iterator[None]:
        """Inside the block, row `b` of every batch runs on the model edited by lane `lanes[b]`.

        Args:
            lanes: `[batch]` int64; -1 is the unedited model.
        """
        handles = []
        for module, banks in self._banks.items():
            handles.append(module.register_forward_pre_hook(_MoveRows(banks, lanes)))
        for module, (left, right) in self._stacks.items():
            device = next(module.parameters()).device
            index = torch.where(lanes < 0, self.n_lanes, lanes).to(left.device)
            hook = _AddRows(left[index].to(device), right[index].to(device))
            handles.append(module.register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _MoveRows:
    """Forward pre-hook: the keys of every row pass the pathways of its lane."""

    def __init__(self, banks: dict[int, Bank], lanes: Tensor) -> None:
        self.banks, self.lanes = banks, lanes
        self.present = [lane for lane in lanes.unique().tolist() if lane in banks]

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        keys = args[0].reshape(len(self.lanes), -1, args[0].shape[-1])
        moved = keys
        for lane in self.present:
            rows = (self.lanes == lane).nonzero()[:, 0].to(keys.device)
            native = keys[rows]
            new = self.banks[lane](native)
            if new is not native:
                moved = moved.index_copy(0, rows, new)
        return (moved.reshape(args[0].shape), *args[1:])


class _AddRows:
    """Forward hook: `y += left_b (right_b x)` for every row b."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left = left.transpose(1, 2).contiguous()  # [batch, r, d_out]
        self.right = right.transpose(1, 2).contiguous()  # [batch, d_in, r]

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].reshape(self.right.shape[0], -1, self.right.shape[1]).float()  # some MLPs flatten rows
        extra = torch.bmm(torch.bmm(x, self.right), self.left)
        return (output.float() + extra.reshape(output.shape)).to(output.dtype)
