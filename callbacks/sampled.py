"""A text that the model writes after each request, before and after its edit: sampled once for all who ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.lanes import BatchedDeltas
from kedit.evaluation.fluency import sampled_texts
from kedit.methods.base.callback import EditCallback
from kedit.methods.base.edit_batch import EditBatch
from kedit.request import EditRequest
from kedit.runtime.progress import stage

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule

Row = dict[str, Any]
Pair = tuple[str | None, str | None]  # the text before and after; None where the prompt leaves no room


class TextCallback(EditCallback):
    """An edit callback that looks at sampled texts. All of a trainer share those of the first."""

    def __init__(self) -> None:
        self._samples = SampledTexts()

    def samples(self, trainer: Trainer) -> SampledTexts:
        """Where the texts of this trainer's run are."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        return next(c for c in callbacks if isinstance(c, TextCallback))._samples


class SampledTexts:
    """The texts of a run, of 100 tokens with the prompt (`sampled_texts`), seeded by run and case."""

    def __init__(self) -> None:
        self._base: dict[str, str | None] = {}  # of the unedited model, where edits accumulate
        self._rows: list[Row] | None = None
        self._pairs: list[Pair] = []

    def start(self, trainer: Trainer, module: EditingModule) -> None:
        """Samples from the unedited model once, where later batches are edited on top of earlier ones."""
        if module.regime != "sequential" or self._base:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        requests = [record.request for batch in data.batches[: trainer.max_epochs] for record in batch]
        with stage("texts of the unedited model"):
            texts = _sample(module, requests)
        self._base = {request.case_id: text for request, text in zip(requests, texts, strict=True)}

    def of(self, module: EditingModule, rows: list[Row], batch: EditBatch | None) -> list[Pair]:
        """(before, after) of every row that `on_rows` was given; a second call with the same list samples nothing."""
        if self._rows is not rows:
            self._rows, self._pairs = rows, self._measure(module, rows, batch)
        return self._pairs

    def _measure(self, module: EditingModule, rows: list[Row], batch: EditBatch | None) -> list[Pair]:
        requests = [EditRequest(row["case_id"], **row["request"]) for row in rows]
        if module.regime == "sequential" or batch is None:
            before = [self._base[request.case_id] for request in requests]
            after = _sample(module, requests)
        elif module.regime == "batch":
            before = _sample(module, requests)
            after: list[str | None] = [None] * len(rows)
            for measured_at, deltas in (("edit", batch.deltas), ("editor", batch.baseline_deltas or [])):
                mine = [i for i, row in enumerate(rows) if row["measured_at"] == measured_at]
                with edited(module.lm.model, *(delta for delta in deltas if delta is not None)):
                    for i, text in zip(mine, _sample(module, [requests[i] for i in mine]), strict=True):
                        after[i] = text
        else:
            lane = {("edit", record.request.case_id): i for i, record in enumerate(batch.records)}
            lane |= {("editor", case): len(batch.records) + i for (_, case), i in lane.items()}
            bank = BatchedDeltas(
                module.lm.model, [d or Delta() for d in [*batch.deltas, *(batch.baseline_deltas or [])]]
            )
            lanes = [-1] * len(requests) + [lane[row["measured_at"], row["case_id"]] for row in rows]
            both = _sample(module, requests * 2, lanes, bank)
            before, after = both[: len(requests)], both[len(requests) :]
        return list(zip(before, after, strict=True))


def _sample(
    module: EditingModule,
    requests: Sequence[EditRequest],
    lanes: list[int] | None = None,
    bank: BatchedDeltas | None = None,
) -> list[str | None]:
    prompts, seeds = ([request.text.rstrip(" ") for request in requests], [request.case_id for request in requests])
    return sampled_texts(module.lm, prompts, [f"{module.seed}/{seed}" for seed in seeds], lanes, bank)
