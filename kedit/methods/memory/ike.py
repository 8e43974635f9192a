"""IKE: a fact is edited by what stands before every prompt: other edits as demonstrations, then the new fact."""

from __future__ import annotations

from collections import Counter
from typing import Any

from kedit.data import read_facts
from kedit.data.readers.any_format import read_any
from kedit.delta.prompt_memory import PromptRule, StoredFact
from kedit.errors import KeditError, at_least
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.method_card import MethodCard
from kedit.methods.base.module import EditingModule
from kedit.methods.base.phase import EditProgram
from kedit.methods.memory.demonstrations import NEW_FACT, PROMPT, DemonstrationPool, said, unrelated
from kedit.methods.memory.facts import check_room, memory
from kedit.model.sentence_encoder import SentenceEncoder
from kedit.request import EditRecord

SPLITS = ("train", "validation", "test")


class IKE(EditingModule):
    """Puts the new fact, and k demonstrations of other edits, before every prompt. No weight changes.

    Args:
        k: Demonstrations; 0 gives the new fact alone (ICE).
        demonstrations: File of records that they are made of, in any format; null: facts that ship with kedit, of a
            split that is not edited.
        encoder: Folder of a sentence encoder that chooses them by meaning; null chooses them by their words.
    """

    card = MethodCard("Zheng et al., EMNLP 2023", "nothing: a fact before every prompt", ("training data",), "none")

    regimes = ("single",)
    needs_subject = False
    trains_target = False
    steps_per_batch = 1  # never taken: there is no phase

    def __init__(self, k: int = 16, demonstrations: str | None = None, encoder: str | None = None) -> None:
        super().__init__()
        at_least("model.k", k, 0)
        self.k, self.demonstrations = k, demonstrations
        self.encoder = None if encoder is None else SentenceEncoder(encoder)
        self._rule = PromptRule(NEW_FACT, PROMPT)
        self._pool = DemonstrationPool([])

    def check_fit(self, record: EditRecord) -> None:
        """The fact must fit into the context with its own prompt and answer; demonstrations can be left out."""
        check_room(self.lm, self._rule, record.request, said(record.request))

    def start(self) -> None:
        """Reads what demonstrations are made of.

        Raises:
            KeditError: No record is left that shares nothing with the edited ones.
        """
        if not self.k:
            return
        edited = self.schedule.edited_in()
        if self.demonstrations is not None:
            found = unrelated(read_any(self.demonstrations, "model.demonstrations"), edited)
        else:
            prompts = {record.request.text for record in edited}
            splits = [read_facts(split) for split in (*SPLITS, "all")]
            free = [split for split in splits if all(record.request.text not in prompts for record in split)]
            found = unrelated([*free, splits[-1]][0], edited)
        if not found:
            raise KeditError(
                "model.demonstrations: no record is left in it that shares neither prompt nor subject with an edited "
                "one; give another file, or model.k: 0"
            )
        self._pool = DemonstrationPool(found, self.encoder)

    def edit(self, batch: EditBatch) -> EditProgram:
        """Remembers each fact with its demonstrations."""
        yield from ()
        deltas = []
        for outcome in batch.outcomes:
            request = outcome.record.request
            chosen = self._pool.choose(outcome.record, self.k)
            outcome.note(demonstrations=dict(Counter(one.kind for one in chosen)))
            fact = StoredFact(request.text, said(request))
            deltas.append(memory(self._rule, [fact], [one.text for one in chosen]))
        return deltas

    def describe(self) -> dict[str, Any]:
        """What the demonstrations are made of."""
        encoder = None if self.encoder is None else self.encoder.folder
        return super().describe() | {"k": self.k, "demonstrations": self.demonstrations, "encoder": encoder}
