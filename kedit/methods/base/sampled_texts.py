"""A text that the model writes after each request, before and after its edit: sampled once for all who ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kedit.delta.lanes import BatchedDeltas
from kedit.evaluation.fluency import sampled_texts
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.views import BEFORE, accumulates, measure
from kedit.model.lm import LM
from kedit.request import EditRequest
from kedit.runtime.progress import stage

Row = dict[str, Any]
Text = str | None  # None where the prompt leaves no room
Pair = tuple[Text, Text]  # before and after


class SampledTexts:
    """The texts of a run, of 100 tokens with the prompt (`sampled_texts`), seeded by run and case.

    Args:
        lm: The model.
        regime: Of the run.
        seed: Of the run.
    """

    def __init__(self, lm: LM, regime: str, seed: int) -> None:
        self.lm, self.regime, self.seed = lm, regime, seed
        self._base: dict[str, Text] = {}  # of the unedited model, where edits accumulate
        self._rows: list[Row] | None = None
        self._pairs: list[Pair] = []

    def start(self, requests: Sequence[EditRequest]) -> None:
        """Samples from the unedited model, where later batches are edited on top of earlier ones."""
        if not accumulates(self.regime):
            return
        with stage("texts before any edit (once a run)"):
            texts = self._sample(requests)
        self._base = {request.case_id: text for request, text in zip(requests, texts, strict=True)}

    def of(self, rows: list[Row], batch: EditBatch | None) -> list[Pair]:
        """(before, after) of every row that `on_rows` was given; a second call with the same list samples nothing."""
        if self._rows is not rows:
            self._rows, self._pairs = rows, self._measure(rows, batch)
        return self._pairs

    def _measure(self, rows: list[Row], batch: EditBatch | None) -> list[Pair]:
        requests = [EditRequest(row["case_id"], **row["request"]) for row in rows] * 2
        asks = [(BEFORE, str(row["case_id"])) for row in rows]
        asks += [(str(row["measured_at"]), str(row["case_id"])) for row in rows]

        def run(numbers: list[int], lanes: list[int] | None, bank: BatchedDeltas | None, shared: bool) -> list[Text]:
            return self._sample([requests[i] for i in numbers], lanes, bank)

        texts = measure(self.regime, self.lm.model, batch, asks, run, self._base)
        return list(zip(texts[: len(rows)], texts[len(rows) :], strict=True))

    def _sample(
        self, requests: Sequence[EditRequest], lanes: list[int] | None = None, bank: BatchedDeltas | None = None
    ) -> list[Text]:
        prompts = [request.text.rstrip(" ") for request in requests]
        return sampled_texts(self.lm, prompts, [f"{self.seed}/{r.case_id}" for r in requests], lanes, bank)
