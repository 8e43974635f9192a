"""`EditorWrapper`: a method built around another one, whose model, regime, lanes and seed it shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, Self, TypeVar

from kedit.delta.delta import Delta
from kedit.errors import KeditError
from kedit.methods.base.committed import AppliedEdits
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.edit_config import EditConfig, Regime
from kedit.methods.base.module import EditingModule
from kedit.methods.wrappers.weight_changes import changes_weights
from kedit.model.lm import LM, LMConfig
from kedit.request import EditRecord

E = TypeVar("E", bound=EditingModule)


class EditorWrapper(EditingModule, Generic[E]):
    """Base of the methods that add to an editor (REP, STEAM), or restrain what it changes (PRUNE, RECT).

    What the class says of itself is the editor's: regimes, whether a subject is needed, how deltas are kept.

    Args:
        editor: The method that edits; it may be such a method itself.
    """

    def __init__(self, editor: E) -> None:
        super().__init__()
        self._editor = editor
        self.usual_regime, self.needs_subject = editor.usual_regime, editor.needs_subject
        self.found_out = tuple(dict.fromkeys((*editor.found_out, *type(self).found_out)))
        self.takes_out_earlier = editor.takes_out_earlier
        self.merges_deltas = type(self).merges_deltas or editor.merges_deltas
        self._committed = AppliedEdits(self.merged if self.merges_deltas else None)
        now = EditConfig(editor.regime, editor.lanes, editor.seed, editor.recompute, editor.ends_targets)
        super().configure(editor.lm_config, now)

    def configure(self, lm: LMConfig | None = None, edit: EditConfig | None = None) -> Self:
        """Configures the editor, whose regime, where it is left out, is this method's."""
        self.editor.configure(lm, edit)
        return super().configure(lm, None if edit is None else replace(edit, regime=self.editor.regime))

    @property
    def regimes(self) -> tuple[Regime, ...]:  # type: ignore[override]
        """The editor's."""
        return self._editor.regimes

    @property
    def editor(self) -> E:
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

    def merged(self, earlier: Delta, delta: Delta) -> Delta:
        """As the editor adds them up, where this method leaves its deltas as they are."""
        return self.editor.merged(earlier, delta)

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
        """Provenance: the editor's hyperparameters. An editor with an editor of its own is called `REP(ROME)`."""
        about = self.editor.describe()
        inner, name = about.get("editor"), type(self.editor).__name__
        return about | {"method": type(self).__name__, "editor": name if inner is None else f"{name}({inner})"}

    # -- for methods that restrain what their editor changes ----------------------------------------------

    def refuse_itself(self) -> None:
        """Refuses an editor that is, or has inside, another of this very class: nothing is restrained twice.

        Raises:
            KeditError: It is one.
        """
        name = type(self).__name__
        if any(isinstance(editor, type(self)) for editor in _below(self)):
            raise KeditError(f"model.editor: {name} around {name} would restrain the same change twice; leave one out")

    def check_weights(self, deltas: Sequence[Delta | None]) -> None:
        """Refuses an editor that changes no weight: there would be nothing to restrain.

        Raises:
            KeditError: A delta has no change of a weight.
        """
        for delta in deltas:
            if delta is not None and not changes_weights(delta):
                raise KeditError(
                    f"model.editor: {type(self).__name__} restrains changes of weights, and "
                    f"{type(self.editor).__name__} changes none; use another editor"
                )

    def keep_baseline(self, batch: EditBatch, deltas: Sequence[Delta | None]) -> None:
        """Puts what the editor alone changes beside the batch's own deltas, where both can be measured."""
        if self.regime != "sequential":
            batch.add_baseline([delta and (self.editor.finish(delta) or delta) for delta in deltas])


def _below(method: EditingModule) -> Iterator[EditingModule]:
    """The editor of a method, the editor's own, and so on."""
    while method.editor is not method:
        method = method.editor
        yield method
