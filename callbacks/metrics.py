"""`EditMetrics`: scores every probe before and after the edit, in large batches, and leaves rows to be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningModule, Trainer

from kedit.bars import stage
from kedit.batch import EditBatch, Outcome
from kedit.callbacks.base import EditCallback, editing
from kedit.delta import Delta, edited
from kedit.evaluate import EvalConfig, ProbeScore, score_records
from kedit.lanes import LaneBank
from kedit.requests import EditRecord
from kedit.summary import result_row

if TYPE_CHECKING:
    from kedit.methods.base import EditingModule


Moment = Literal["edit", "end", "editor"]
MEASURED: Mapping[str, str] = MappingProxyType(
    {
        "edit": "after its own edit",
        "end": "after the last edit",
        "both": "after its own edit and after the last",
        "editor": "after its own edit, without what the method adds to its editor",
    }
)


class EditMetrics(EditCallback):
    """Measures what the edits did; the numbers are in `batch.outcomes[i].rows`.

    Single regime: the probes of all lanes, before and after, are scored together, every row of the batch seeing
    its own edit. Sequential regime: the unedited model is measured once at the start, every record right after
    its own edit, and all of them again after the last.

    Where a method adds to an editor (REP; STEAM with `compare`), the single and batch regimes measure what the editor
    alone does too: rows of the moment `editor`.

    Args:
        scoring: How probes are scored.
        measure: In the sequential regime, whether records are measured right after their own `edit`, at the
            `end` of the run, or `both`. Failed edits are measured too: they are edits that did nothing.
    """

    def __init__(self, scoring: EvalConfig = EvalConfig(), measure: Literal["edit", "end", "both"] = "both") -> None:
        self.scoring, self.measure = scoring, measure
        self._base: dict[str, list[ProbeScore]] = {}
        self._edited: list[tuple[int, Outcome]] = []
        self._resumed: list[tuple[dict[str, Any], str | None]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the unedited model once, where later batches are edited on top of earlier ones."""
        module = editing(pl_module)
        if module.regime != "sequential":
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        records = [record for batch in data.batches[: trainer.max_epochs] for record in batch]
        with stage("scoring the unedited model") as progress:
            scores = score_records(module.lm, records, config=self.scoring, progress=progress, shared=True)
        self._base = {record.request.case_id: s for record, s in zip(records, scores, strict=True)}
        done = [(i, r) for i, batch in enumerate(data.batches[: module.resumed_at]) for r in batch]
        known = zip(done, self._resumed, strict=True)
        self._edited = [(i, Outcome(r, info=info, error=error)) for (i, r), (info, error) in known]

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what is known of the edits so far, which the rows at the end will say again."""
        return {"outcomes": [(outcome.info, outcome.error) for _, outcome in self._edited]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back; called before `on_fit_start`."""
        self._resumed = [tuple(outcome) for outcome in state_dict["outcomes"]]

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Fills in the rows of the batch."""
        if not batch.records:  # the other processes have the last ones
            return
        if module.regime == "sequential":
            self._edited += [(batch.index, outcome) for outcome in batch.outcomes]
            if self.measure == "end":
                return
            after = score_records(module.lm, batch.records, config=self.scoring, shared=True)
            before = [self._base[record.request.case_id] for record in batch.records]
        else:
            arms: dict[Moment, list[Delta]] = {"edit": [delta or Delta() for delta in batch.deltas]}
            if batch.plain is not None:
                arms["editor"] = [delta or Delta() for delta in batch.plain]
            before, *scores = self._arms(module, batch.records, list(arms.values()))
            for when, measured in reversed(list(zip(arms, scores, strict=True))):
                alone = batch.plain_outcomes if when == "editor" else None
                for outcome, of, b, a in zip(batch.outcomes, alone or batch.outcomes, before, measured, strict=True):
                    outcome.rows.append(edit_row(of, batch.index, module.regime, when, b, a))
            return
        for outcome, b, a in zip(batch.outcomes, before, after, strict=True):
            outcome.rows.append(edit_row(outcome, batch.index, module.regime, "edit", b, a))

    def _arms(
        self, module: EditingModule, records: Sequence[EditRecord], arms: list[list[Delta]]
    ) -> list[list[list[ProbeScore]]]:
        """Scores on the unedited model, then under each list of deltas: one per record, or one in all."""
        n = len(records)
        if module.regime == "batch":
            found = [score_records(module.lm, records, config=self.scoring, shared=True)]
            for deltas in arms:
                with edited(module.lm.model, *deltas):
                    found.append(score_records(module.lm, records, config=self.scoring, shared=True))
            return found
        deltas = [delta for arm in arms for delta in arm]
        every = score_records(
            module.lm,
            list(records) * (1 + len(arms)),
            lanes=[-1] * n + list(range(len(deltas))),
            bank=LaneBank(module.lm.model, deltas),
            config=self.scoring,
        )
        return [every[start : start + n] for start in range(0, len(every), n)]

    def end_rows(self, module: EditingModule) -> list[dict[str, Any]]:
        """Rows of every record edited so far, measured on the model as it is now (sequential regime)."""
        if module.regime != "sequential" or self.measure == "edit":
            return []
        records = [outcome.record for _, outcome in self._edited]
        with stage("scoring the model after the last edit") as progress:
            after = score_records(module.lm, records, config=self.scoring, progress=progress, shared=True)
        return [
            edit_row(outcome, index, module.regime, "end", self._base[outcome.record.request.case_id], a)
            for (index, outcome), a in zip(self._edited, after, strict=True)
        ]


def edit_row(
    outcome: Outcome, index: int, regime: str, when: Moment, before: Sequence[ProbeScore], after: Sequence[ProbeScore]
) -> dict[str, Any]:
    """One line of `results.jsonl`: a record, what was done to it, and every probe before and after."""
    request = asdict(outcome.record.request)
    info = {key: value for key, value in outcome.info.items() if when != "editor" or not key.startswith("pathway")}
    return result_row(
        outcome.record,
        before,
        after,
        index,
        when,
        protocol={"regime": regime, "measured": MEASURED[when]},
        status="failed" if outcome.error else "edited",
        error=outcome.error,
        request={key: value for key, value in request.items() if key != "case_id"},
        edit=info,
    )
