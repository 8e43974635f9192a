"""Retrieval: edited facts are remembered as sentences, and those that a prompt is about stand before it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from kedit.data import read_facts
from kedit.data.readers.any_format import read_any
from kedit.delta.delta import Delta
from kedit.delta.prompt_memory import PromptRule, StoredFact
from kedit.errors import KeditError, at_least, shown, within
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.method_card import MethodCard
from kedit.methods.base.module import EditingModule
from kedit.methods.base.phase import EditProgram
from kedit.methods.memory.calibrate import Calibration, calibrate
from kedit.methods.memory.facts import Background, check_room, memory, sentence
from kedit.model.sentence_encoder import SentenceEncoder
from kedit.request import EditRecord

log = logging.getLogger(__name__)


class Retrieval(EditingModule):
    """Puts the edited facts that a prompt is about before it. No weight changes, nothing is trained.

    Args:
        k: The most facts that stand before a prompt.
        threshold: How like the prompt a fact must be, from 0 to 1; null learns it from the facts of `calibration`.
        template: A fact as it stands before the prompt, `{}` being its sentence.
        encoder: Folder of a sentence encoder, which finds facts by their meaning; null finds them by their words.
        calibration: File of facts that are not edited, in any format; null: the training facts that ship with kedit.
    """

    card = MethodCard("ICML 2026 (in the manner of SCR)", "nothing: facts before the prompt", cost="none")

    needs_subject = False
    trains_target = False
    steps_per_batch = 1  # never taken: there is no phase
    found_out = (*EditingModule.found_out, "calibrated")

    def __init__(
        self,
        k: int = 1,
        threshold: float | None = None,
        template: str = "New fact: {}\n",
        encoder: str | None = None,
        calibration: str | None = None,
    ) -> None:
        super().__init__()
        at_least("model.k", k, 1)
        within("model.threshold", threshold, 0.0, 1.0)
        if template.count("{}") != 1:
            raise KeditError(f"model.template: {shown(template)} needs exactly one {{}}, for the fact's sentence")
        self.k, self.template, self.calibration = k, template, calibration
        self.threshold = None if threshold is None else float(threshold)
        self.encoder = None if encoder is None else SentenceEncoder(encoder)
        self.calibrated: Calibration | None = None
        self._background = Background()
        self._rule = PromptRule(template)

    def check_fit(self, record: EditRecord) -> None:
        """A fact must fit into the context with its own prompt and answer."""
        check_room(self.lm, self._rule, record.request, sentence(record.request))

    def start(self) -> None:
        """How common words are, and the threshold: both from facts that are not edited."""
        edited = {record.request.text for record in self.schedule.edited_in()}
        known = read_facts("train") if self.calibration is None else read_any(self.calibration, "model.calibration")
        known = [record for record in known if record.request.text not in edited]
        self._background = Background.of(known) if known and self.encoder is None else Background()
        threshold = self.threshold
        if threshold is None:
            self.calibrated = calibrate(known, self.encoder)
            threshold = self.calibrated.threshold
            log.info(
                "a fact is used from a similarity of %.3f on: %.0f %% of paraphrases of %d other facts find theirs, "
                "%.0f %% of prompts find another one",
                *(threshold, 100 * self.calibrated.found, len(known), 100 * self.calibrated.mistaken),
            )
        self._rule = PromptRule(self.template, "", self.k, threshold, self._background.texts)
        if self.encoder is not None:
            seen = {"encoder": self.encoder.folder, "encoder_fingerprint": self.encoder.fingerprint}
            self._rule = replace(self._rule, **seen)

    def edit(self, batch: EditBatch) -> EditProgram:
        """Remembers the facts of the batch."""
        yield from ()
        facts = [self._fact(record) for record in batch.records]
        for outcome, fact in zip(batch.outcomes, facts, strict=True):
            outcome.note(characters=len(fact.sentence))
        groups = [[fact] for fact in facts] if self.regime == "single" else [facts]
        deltas: list[Delta | None] = [memory(self._rule, group, (), self.encoder) for group in groups]
        return deltas

    def _fact(self, record: EditRecord) -> StoredFact:
        prompt = record.request.text
        return StoredFact(prompt, sentence(record.request), self._background.about(prompt))

    def describe(self) -> dict[str, Any]:
        """Which facts are found, and how they are said."""
        own = {"k": self.k, "threshold": self.threshold, "template": self.template, "calibration": self.calibration}
        own |= {"encoder": None if self.encoder is None else self.encoder.folder}
        found = {"calibrated": None if self.calibrated is None else vars(self.calibrated)}
        return super().describe() | own | found
