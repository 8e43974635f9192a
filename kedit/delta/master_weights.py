"""What was written into one parameter: how to take it back bit for bit, and its float32 master.

Kept for the touched lines alone where only rows or columns were written. Which parameters are
touched is in `kedit.delta.place`.
"""

from __future__ import annotations

import torch
from torch import Tensor

_Where = tuple[int, Tensor] | None
"""Axis and lines; None: the whole parameter."""


class ParameterBackup:
    """Memory of the changes of one parameter, a weight `[d_out, d_in]` or a bias `[d_out]`.

    What is overwritten for the first time is kept, and put back in the opposite order: an entry in a row and in a
    column that were both touched gets the older of its two values last. Parameters in half precision get a float32
    master (of the touched lines or of the whole), so that changes far below their resolution add up. An entry
    in a row and a column is in two masters, which are kept equal.

    The parameter comes with every call: moving a model may give it another storage.
    """

    def __init__(self) -> None:
        self._before: list[tuple[_Where, Tensor]] = []
        self._whole = False
        self._master: Tensor | None = None
        self._lines: dict[int, _Lines] = {}

    def add(self, w: Tensor, change: Tensor) -> None:
        """Adds `change`, of w's shape and device, to the parameter `w`."""
        if not self._whole:
            self._before.append((None, w.detach().clone()))
            self._whole = True
            if _half(w):
                self._master = w.detach().float()
                for axis, touched in self._lines.items():
                    as_rows(self._master, axis)[touched.index] = touched.master
            self._lines.clear()
        target = w if self._master is None else self._master
        target += change.to(target.dtype)
        if self._master is not None:
            w.copy_(self._master)

    def add_lines(self, w: Tensor, axis: int, index: Tensor, values: Tensor) -> None:
        """Adds to some rows or columns of the parameter `w`; its other entries are not even rounded again.

        Args:
            w: `[d_out, d_in]`.
            axis: 0 for rows, 1 for columns.
            index: Which, `[n]` int64 on w's device, each once.
            values: What is added to them, `[n, d_in]` or `[n, d_out]` on w's device.
        """
        view = as_rows(w, axis)
        if not self._whole:
            self._touch(view, index, axis)
        if not _half(w):
            view[index] += values.to(w.dtype)
        elif self._master is not None:
            master = as_rows(self._master, axis)
            master[index] += values
            view[index] = master[index].to(w.dtype)
        else:
            mine, across = self._lines[axis], self._lines.get(1 - axis)
            at = mine.place[index]
            mine.master[at] += values
            if across is not None:
                across.master[:, index] += values[:, across.index].T
            view[index] = mine.master[at].to(w.dtype)

    def _touch(self, view: Tensor, index: Tensor, axis: int) -> None:
        """Keeps what is in those lines of `index` that were never touched; in half precision, begins their masters."""
        if axis not in self._lines:
            self._lines[axis] = _Lines(view)
        mine, across = self._lines[axis], self._lines.get(1 - axis)
        new = index[mine.place[index] < 0]
        if not len(new):
            return
        old = view[new]
        self._before.append(((axis, new), old))
        mine.place[new] = torch.arange(len(mine.index), len(mine.index) + len(new), device=new.device)
        mine.index = torch.cat([mine.index, new])
        if _half(view):
            master = old.float()
            if across is not None:
                master[:, across.index] = across.master[:, new].T
            mine.master = torch.cat([mine.master, master])

    def restore(self, w: Tensor) -> None:
        """Puts back every bit that the parameter had before the first change."""
        for where, old in reversed(self._before):
            if where is None:
                w.copy_(old)
            else:
                axis, index = where
                as_rows(w, axis)[index.to(w.device)] = old.to(w.device)


def as_rows(matrix: Tensor, axis: int) -> Tensor:
    """A view of `matrix` `[d_out, d_in]` whose rows are its rows (axis 0) or its columns (axis 1)."""
    return matrix if axis == 0 else matrix.T


class _Lines:
    """The touched rows, or columns, of one parameter.

    Attributes:
        place: Where a line is in `index`, `[n_lines]` int64; -1: untouched.
        index: The touched lines in the order in which they were touched, `[n]` int64.
        master: Their float32 masters, `[n, width]`; empty where the parameter needs none.
    """

    def __init__(self, view: Tensor) -> None:
        self.place = torch.full((len(view),), -1, dtype=torch.int64, device=view.device)
        self.index = self.place.new_empty(0)
        self.master = torch.empty(0, view.shape[1], device=view.device)


def _half(w: Tensor) -> bool:
    return w.dtype not in (torch.float32, torch.float64)
