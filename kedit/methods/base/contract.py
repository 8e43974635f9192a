"""`Contract`: what a method defines: its algorithm, and the hooks around it. Nothing of Lightning in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from kedit.delta.delta import Delta
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.method_card import MethodCard
from kedit.methods.base.phase import EditProgram
from kedit.request import EditRecord


class Contract(ABC):
    """A method, as `EditingModule` runs it."""

    card: MethodCard
    """Paper, what is changed and what is needed, for `kedit ls methods`."""

    steps_per_batch: int
    """Most optimiser steps an edit batch can take, over all its phases."""

    def check_fit(self, record: EditRecord) -> None:  # noqa: B027 (a hook)
        """Whether every text that editing the record runs fits into the model's context.

        Raises:
            TooLong: One does not; names the record.
        """

    def start(self) -> None:  # noqa: B027 (a hook)
        """Called once, with the unedited model on its device: contexts, statistics, whatever the run needs."""

    @abstractmethod
    def edit(self, batch: EditBatch) -> EditProgram:
        """The algorithm: yield phases, fill `batch.outcomes`' info and errors, return the deltas.

        Returns:
            In the single regime one delta per record (None where it failed), otherwise a list of one.
        """
        raise NotImplementedError

    def after_commit(self, batch: EditBatch) -> None:  # noqa: B027 (a hook)
        """Called where edits accumulate, in every process alike, when the deltas of `batch` are in the weights.

        For what a method remembers of its edits: `batch.keys` are the keys that it solved `batch.edited` with. What it
        remembers belongs to `edit_state`. In the other regimes nothing is committed, and this is not called.
        """

    def merged(self, earlier: Delta, delta: Delta) -> Delta:
        """The sum of all deltas and one more, where checkpoints keep their sum (`merges_deltas`).

        A method whose deltas take out what earlier ones put in can give it in fewer numbers.
        """
        return Delta.concat([earlier, delta])

    def finish(self, total: Delta) -> Delta | None:
        """What takes the place of everything that was changed, when all is done; None leaves it as it is.

        Where edits accumulate, `total` is the sum of all deltas, and this is called once, after the last edit and
        before the end is measured: rows of the moment `end` and the saved delta are of what it returns, those of
        `edit` and `at_N` are not. Checkpoints hold the deltas as they were made, so that a resumed run gives the same
        sum and never a restrained one. In the other regimes every delta is all that is changed: this is called
        with each, before it is measured.
        """
        return None

    def method_state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides the deltas: tensors, numbers, strings, lists and dicts of them.

        It is written after every edit batch; what grows with the edits belongs to `edit_state`.
        """
        return {}

    def load_method_state(self, state: dict[str, Any]) -> None:  # noqa: B027 (a hook)
        """Takes back what `method_state` gave; called before `start`."""

    def edit_state(self, records: Sequence[EditRecord]) -> dict[str, Any]:
        """What the edits of some records have added to the method's state, where edits accumulate; written once."""
        return {}

    def load_edit_state(self, state: dict[str, Any]) -> None:  # noqa: B027 (a hook)
        """Takes back what `edit_state` gave, in the order of the edits; called before `start`."""
