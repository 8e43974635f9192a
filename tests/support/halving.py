"""A wrapper whose `finish` halves all that was changed: what a method like PRUNE does at the end of a run."""

from __future__ import annotations

from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.phase import EditProgram
from kedit.methods.locate_then_edit.base import LocateThenEdit
from kedit.methods.wrappers.base import EditorWrapper


class Halving(EditorWrapper[LocateThenEdit]):
    """The editor's change, halved when all is done.

    Args:
        editor: The method that edits.
    """

    def __init__(self, editor: LocateThenEdit) -> None:
        super().__init__(editor)
        self.totals: list[Delta] = []

    def edit(self, batch: EditBatch) -> EditProgram:
        return (yield from self.editor.edit(batch))

    def finish(self, total: Delta) -> Delta | None:
        self.totals.append(total)
        return total.with_changes({path: Factors(f.left / 2, f.right) for path, f in total.of_kind(Factors).items()})
