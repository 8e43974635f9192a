"""`EditorWrapper`: a method built around another one, whose model, regime, lanes and seed it shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from kedit.delta.delta import Delta
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.edit_config import EditConfig, Regime
from kedit.methods.base.module import EditingModule
from kedit.methods.locate_then_edit.base import LocateThenEdit
from kedit.model.lm import LM, LMConfig
from kedit.request import EditRecord


class EditorWrapper(EditingModule):
    """Base of the methods that add to an editor (REP, STEAM).

    Args:
        editor: The method that edits.
    """

    def __init__(self, editor: LocateThenEdit) -> None:
        super().__init__()
        self._editor = editor
        super().configure(editor.lm_config, EditConfig(editor.regime, editor.lanes, editor.seed))

    def configure(self, lm: LMConfig | None = None, edit: EditConfig | None = None) -> Self:
        """Configures the editor, whose regime, where it is left out, is this method's."""
        self.editor.configure(lm, edit)
        return super().configure(lm, None if edit is None else replace(edit, regime=self.editor.regime))

    @property
    def regimes(self) -> tuple[Regime, ...]:  # type: ignore[override]
        """The editor's."""
        return self._editor.regimes

    @property
    def editor(self) -> LocateThenEdit:
        """The method that edits."""
        return self._editor

    @property
    def lm(self) -> LM:
        """The editor's model."""
        return self.editor.lm

    def use_lm(self, lm: LM) -> None:
        """Edit a model that is already in memory."""
        self.editor.use_lm(lm)

    def lane_count(self) -> int:
        """The editor's."""
        return self.editor.lane_count()

    def prepare_records(self, records: list[EditRecord]) -> list[EditRecord]:
        """The editor's checks."""
        return self.editor.prepare_records(records)

    def check_fit(self, record: EditRecord) -> None:
        """The editor's."""
        self.editor.check_fit(record)

    def setup(self, stage: str) -> None:
        """The editor's."""
        self.editor.setup(stage)
        self.steps_per_batch = self.editor.steps_per_batch

    def start(self) -> None:
        """The editor's preparation."""
        self.editor.start()

    def after_commit(self, batch: EditBatch) -> None:
        """The editor's."""
        self.editor.after_commit(batch)

    def finish(self, total: Delta) -> Delta | None:
        """The editor's."""
        return self.editor.finish(total)

    def method_state(self) -> dict[str, Any]:
        """The editor's."""
        return self.editor.method_state()

    def load_method_state(self, state: dict[str, Any]) -> None:
        """The editor takes it back."""
        self.editor.load_method_state(state)

    def edit_state(self, records: Sequence[EditRecord]) -> dict[str, Any]:
        """The editor's."""
        return self.editor.edit_state(records)

    def load_edit_state(self, state: dict[str, Any]) -> None:
        """The editor takes it back."""
        self.editor.load_edit_state(state)

    def describe(self) -> dict[str, Any]:
        """Provenance: the editor's hyperparameters."""
        return self.editor.describe() | {"method": type(self).__name__, "editor": type(self.editor).__name__}
