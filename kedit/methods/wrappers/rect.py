"""RECT: relative change in weight (Gu et al., EMNLP 2024; baselines 1.9).

Of what an edit batch changes in a matrix, only the entries stay that change most beside their weight: the top k percent
by |Delta / W|.
"""

from __future__ import annotations

from typing import Any

from kedit.delta.change import WeightChange
from kedit.delta.delta import Delta
from kedit.errors import KeditError, above_zero, within
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.method_card import MethodCard
from kedit.methods.base.module import EditingModule
from kedit.methods.base.phase import EditProgram
from kedit.methods.wrappers.base import EditorWrapper
from kedit.methods.wrappers.largest_entries import of_largest
from kedit.methods.wrappers.weight_changes import each_matrix
from kedit.model.architecture import weight


class RECT(EditorWrapper[EditingModule]):
    """Keeps of every edit batch's change the entries that are largest beside their weight, in each matrix.

    Args:
        editor: The method that edits: any that changes weights.
        percent: How many of each matrix's entries are kept, in percent.
        absolute: Score |Delta| / (|W| + 1e-8) instead of the published |Delta / (W + 1e-8)|.
    """

    card = MethodCard("Gu et al., EMNLP 2024", "the entries of its editor's matrices that change most")

    merges_deltas = True  # as large as the matrices, each of them

    def __init__(self, editor: EditingModule, percent: float = 40.0, absolute: bool = False) -> None:
        super().__init__(editor)
        self.refuse_itself()
        above_zero("model.percent", percent)
        within("model.percent", percent, 0.0, 100.0)
        self.percent, self.absolute = percent, absolute

    def setup(self, stage: str) -> None:
        """Refuses an editor that goes on from its own earlier change, which would not be the one in the weights."""
        if self.regime == "sequential" and self.editor.takes_out_earlier:
            raise KeditError(
                f"edit.regime: {type(self.editor).__name__} trains one adapter on and on, and must find its own change "
                "in the weights, not the part that RECT keeps of it; use single or batch"
            )
        super().setup(stage)

    def merged(self, earlier: Delta, delta: Delta) -> Delta:
        """The sum of what was kept."""
        return Delta.concat([earlier, delta])

    def edit(self, batch: EditBatch) -> EditProgram:
        """The editor's algorithm, then its largest entries, beside the weights that it has edited."""
        deltas = yield from self.editor.edit(batch)
        self.check_weights(deltas)
        self.keep_baseline(batch, deltas)
        kept = [None if delta is None else self._of_largest(delta) for delta in deltas]
        for i, outcome in enumerate(batch.outcomes):
            old, new = (some[i if self.regime == "single" else 0] for some in (deltas, kept))
            if outcome.error is None and old is not None and new is not None:
                outcome.note(rect_norm=new.norm(), rect_share=new.norm() / (old.norm() or 1.0))
        return kept

    def _of_largest(self, delta: Delta) -> Delta:
        """The largest entries of each matrix's change; what is no change of a weight stays as it is."""

        def kept(path: str, change: WeightChange) -> WeightChange:
            w = weight(self.lm.model.get_submodule(path))
            return of_largest(change, w, self.percent, self.absolute)

        return each_matrix(delta, kept)

    def describe(self) -> dict[str, Any]:
        """Provenance: the editor's, and which entries are kept."""
        return super().describe() | {"percent": self.percent, "absolute": self.absolute}
