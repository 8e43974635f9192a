"""How a bank's open gates move keys: which keys are looked at, and with which adapters.

On a CPU only open keys are moved, one adapter after another. Elsewhere the host would have to wait to know which they
are: there a small bank moves every key and keeps what is open; for a large one the host waits once, for the number of
the gate at every key. Both hand a fixed number of operations to the device, whatever the number of gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kedit.delta.pathway import Pathway

WORTH = 2**29  # multiplications in a projection that are made for all keys sooner than the host waits (some 50 us)
HELD = 2**25  # numbers of all projections side by side, at most


def move_open(flat: Tensor, best: Tensor, winner: Tensor, bar: float, pathways: Sequence[Pathway]) -> Tensor:
    """k_hat of keys, with the adapters of the gates that are open; the host looks at which they are.

    Args:
        flat: Native keys `[n, D]`.
        best: Margin of the gate that is open widest, `[n]`.
        winner: Its number, `[n]` int64.
        bar: What a margin must exceed.
        pathways: The bank's.

    Returns:
        `[n, D]`; `flat` itself where no gate is open.
    """
    rows = (best > bar).nonzero()[:, 0]
    if not len(rows):
        return flat
    result = flat.clone()
    for j in winner[rows].unique().tolist():
        mine = rows[winner[rows] == j]
        native = flat[mine].float()
        result[mine] = (native + pathways[j].move(native)).to(flat.dtype)
    return result


class QueuedMoves:
    """The same for a device that works through a queue.

    Args:
        pathways: The bank's.
    """

    def __init__(self, pathways: Sequence[Pathway]) -> None:
        self._pathways = tuple(pathways)
        rank, d = max(p.down.shape[0] for p in self._pathways), self._pathways[0].d_in
        self._numbers = len(self._pathways) * rank * d
        self._all = _Projections(self._pathways) if self._numbers <= HELD else None

    def __call__(self, flat: Tensor, best: Tensor, winner: Tensor | None, bar: float) -> Tensor:
        """As `move_open`; there is no `winner` where there is one gate."""
        if self._all is not None and len(flat) * self._numbers <= WORTH:
            native = flat.float()
            moved = (native + self._all.move(native, winner)).to(flat.dtype)
            return torch.where((best > bar)[:, None], moved, flat)
        acting = torch.where(best > bar, 0 if winner is None else winner, -1).tolist()  # the host waits, once
        rows = [row for row, gate in enumerate(acting) if gate >= 0]
        if not rows:
            return flat
        gates = sorted({acting[row] for row in rows})
        number = {gate: i for i, gate in enumerate(gates)}
        index, own = torch.tensor([rows, [number[acting[row]] for row in rows]]).to(flat.device)
        native = flat[index].float()
        moved = native + _Projections([self._pathways[gate] for gate in gates]).move(native, own)
        return flat.index_copy(0, index, moved.to(flat.dtype))


class _Projections:
    """Projections of some pathways side by side; every key takes one of them. Ranks are padded with zeros."""

    def __init__(self, pathways: Sequence[Pathway]) -> None:
        self.n, self.rank = len(pathways), max(p.down.shape[0] for p in pathways)
        d = pathways[0].d_in
        if len({p.down.shape[0] for p in pathways}) == 1:
            self.down = torch.cat([p.down for p in pathways])  # [n r, D]
            self.up = torch.cat([p.up for p in pathways], 1).T.reshape(self.n * self.rank, d)
        else:
            self.down, self.up = (pathways[0].down.new_zeros(self.n * self.rank, d) for _ in range(2))
            for i, p in enumerate(pathways):
                start, stop = i * self.rank, i * self.rank + p.down.shape[0]
                self.down[start:stop], self.up[start:stop] = p.down, p.up.T
        given = [p.offset for p in pathways if p.offset is not None]
        self.offset: Tensor | None = None
        if given:
            zero = torch.zeros_like(given[0])
            self.offset = torch.stack([zero if p.offset is None else p.offset for p in pathways])

    def move(self, keys: Tensor, own: Tensor | None) -> Tensor:
        """f of keys `[n, D]`, each by the pathway that `own` `[n]` says, or by the only one: `[n, D]`."""
        inner = keys @ self.down.T
        if self.n == 1 or own is None:
            return inner @ self.up if self.offset is None else torch.addmm(self.offset, inner, self.up)
        mine = own[:, None] == torch.arange(self.n, device=own.device)
        inner = (inner.view(len(keys), self.n, self.rank) * mine[..., None]).flatten(1)
        return inner @ self.up if self.offset is None else torch.addmm(self.offset[own], inner, self.up)
