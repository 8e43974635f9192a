"""`WhitenedSimilarity`: how much of each edit its queries receive, before and after REP; a table and histograms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console

from kedit.analysis.similarity import measure, others_of
from kedit.analysis.similarity_figure import draw
from kedit.analysis.similarity_report import as_csv, measured, similarity_table, summary_rows
from kedit.delta.delta import Delta
from kedit.delta.pathways import Pathways
from kedit.errors import KeditError
from kedit.methods.base.callback import EditCallback, Row, editing
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.views import arms_of
from kedit.runtime.files import write_text

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule
    from kedit.methods.locate_then_edit.base import LocateThenEdit


class WhitenedSimilarity(EditCallback):
    """Measures r(k), the share of an edit that reaches a key, for robust queries, neighbours and other records.

    Every row of the results gets `similarity`; at the end there are a table, `similarity.csv` and
    `similarity.png`, all computed from the rows. For the single regime, and data with `queries`.

    Args:
        enabled: Measure it.
        bounds: Also find, for every edit, the least r at which it is answered and the largest r that a neighbour
            bears (13 scales of the update).
    """

    def __init__(self, enabled: bool = False, bounds: bool = True) -> None:
        self.enabled, self.bounds = enabled, bounds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses runs that it cannot measure.

        Raises:
            KeditError: The regime is not single, the data has no queries, or the method edits no key.
        """
        if not self.enabled:
            return
        module = editing(pl_module)
        _editor(module)
        if module.regime != "single":
            raise KeditError(
                f"similarity.enabled: r(k) is of one edit alone; use edit.regime: single, not {module.regime}"
            )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data.queries is None:
            raise KeditError("similarity.enabled: there are no queries to measure; give data.queries its options")

    def on_rows(self, trainer: Trainer, module: EditingModule, rows: list[Row], batch: EditBatch | None) -> None:
        """Adds the similarities to rows about to be written; edits that failed have none."""
        if not self.enabled or batch is None:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        editor = _editor(module)
        edit, *editors = arms_of(module.regime, batch)
        adapts = bool(editors) and any(delta.of_kind(Pathways) for delta in edit.deltas if delta is not None)
        baseline = editors[0] if adapts else edit
        made = [
            (record, before, after)
            for record, before, after in zip(batch.records, baseline.deltas, edit.deltas, strict=True)
            if before is not None and after is not None
        ]
        records = [record for record, _, _ in made]
        adapted: list[Delta] | None = [after for _, _, after in made] if adapts else None
        similarities = measure(
            module.lm,
            records,
            [before for _, before, _ in made],
            adapted,
            [others_of(record, data.records) for record in records],
            editor.edited_layers,
            editor.contexts,
            editor.edit_key,
            self.bounds,
        )
        values = {record.request.case_id: value for record, value in zip(records, similarities, strict=True)}
        for row in rows:
            if row["measured_at"] == "edit" and row["case_id"] in values:
                row["similarity"] = values[row["case_id"]]

    def on_summary(
        self, trainer: Trainer, module: EditingModule, summary: Mapping[str, Any], rows: Iterable[Row]
    ) -> None:
        """The table and the files."""
        if not self.enabled or not (with_similarity := measured(rows)):
            return
        folder, lines = Path(trainer.default_root_dir), summary_rows(with_similarity)
        write_text(folder / "similarity.csv", as_csv(lines))
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        draw(with_similarity, folder / "similarity.png", module.describe(), data.describe())
        Console().print(similarity_table(lines, with_similarity))


def _editor(module: EditingModule) -> LocateThenEdit:
    """The method that edits: the module, or what it adds to.

    Raises:
        KeditError: It has no edited key.
    """
    from kedit.methods.locate_then_edit.base import LocateThenEdit

    editor = module.editor
    if not isinstance(editor, LocateThenEdit):
        raise KeditError(f"similarity.enabled: {type(editor).__name__} edits no key that others could be like")
    return editor
