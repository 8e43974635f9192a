"""`EditMetrics`: scores every probe before and after the edit, in large batches, and leaves rows to be written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningModule, Trainer

from kedit.data.robust_queries import KINDS, REPLACED
from kedit.delta.delta import Delta, edited
from kedit.delta.lanes import BatchedDeltas
from kedit.errors import KeditError, shown
from kedit.evaluation.score import EvalConfig, ProbeScore, check_probes, score_records
from kedit.methods.base.callback import EditCallback, editing
from kedit.methods.base.edit_batch import EditBatch, Outcome
from kedit.request import EditRecord
from kedit.results.rows import edits_of
from kedit.results.summary import result_row
from kedit.runtime.progress import stage

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule

log = logging.getLogger(__name__)

Moment = Literal["edit", "end", "editor"]
MEASURED: Mapping[str, str] = MappingProxyType(
    {
        "edit": "after its own edit",
        "end": "after the last edit",
        "both": "after its own edit and after the last",
        "editor": "after its own edit, without what the method adds to its editor",
    }
)


OF_KEDIT = ("rewrite", "paraphrase", "neighborhood", "portability", "single_hop", "rewording", REPLACED, *KINDS)
"""Kinds of probe that data of kedit's own can have; not all have each."""


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
        eval_at: In the sequential regime, numbers of edits, ascending, after which all records edited so far are
            measured: rows of the moments `at_10`, `at_100`, ..., and a curve over them.
    """

    def __init__(
        self,
        scoring: EvalConfig = EvalConfig(),
        measure: Literal["edit", "end", "both"] = "both",
        eval_at: list[int] | None = None,
    ) -> None:
        self.scoring, self.measure = scoring, measure
        self.eval_at = list(eval_at or [])
        if any(after <= before for before, after in pairwise([0, *self.eval_at])):
            raise KeditError(f"metrics.eval_at: {self.eval_at}: give numbers of edits above 0, ascending, each once")
        self._base: dict[str, list[ProbeScore]] = {}
        self._last: tuple[int, list[list[ProbeScore]]] | None = None  # edits, and what was measured after them

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses `eval_at` where edits do not accumulate, and kinds to generate that do not exist.

        Raises:
            KeditError: The regime is not sequential, or no data has probes of such a kind.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        check_kinds(self.scoring, data.everything)
        regime = editing(pl_module).regime
        if self.eval_at and regime != "sequential":
            raise KeditError(
                f"metrics.eval_at: in the {regime} regime edits do not accumulate; use edit.regime: sequential"
            )

    def on_check_record(self, trainer: Trainer, module: EditingModule, record: EditRecord) -> None:
        """Every probe must fit, with its answers and what is generated after it."""
        check_probes(module.lm, record, self.scoring)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the unedited model once, where later batches are edited on top of earlier ones.

        Raises:
            KeditError: A number of `eval_at` is not at the end of an edit batch.
        """
        module = editing(pl_module)
        if module.regime != "sequential":
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = data.batches[: trainer.max_epochs]
        self._check([0, *accumulate(map(len, batches))])
        records = [record for batch in batches for record in batch]
        with stage("scoring the unedited model") as progress:
            scores = score_records(module.lm, records, config=self.scoring, progress=progress, shared=True)
        self._base = {record.request.case_id: s for record, s in zip(records, scores, strict=True)}

    def _check(self, ends: Sequence[int]) -> None:
        """Whether every number of `eval_at` is among the numbers of edits after the batches; more are left out."""
        late = [n for n in self.eval_at if n > ends[-1]]
        if late:
            log.warning("metrics.eval_at: left out, this run has %d edits: %s", ends[-1], ", ".join(map(str, late)))
        for n in self.eval_at:
            after = next((end for end in ends if end >= n), n)
            if after != n and n not in late:
                before = max(end for end in ends if end < n)
                near = f"the nearest are {before} and {after}" if before else f"the first is {after}"
                raise KeditError(f"metrics.eval_at: {n} edits are not at the end of an edit batch; {near}")

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Fills in the rows of the batch."""
        if not batch.records:  # the other processes have the last ones
            return
        if module.regime == "sequential":
            if self.measure == "end":
                return
            after = score_records(module.lm, batch.records, config=self.scoring, shared=True)
            before = [self._base[record.request.case_id] for record in batch.records]
        else:
            arms: dict[Moment, list[Delta]] = {"edit": [delta or Delta() for delta in batch.deltas]}
            if batch.baseline_deltas is not None:
                arms["editor"] = [delta or Delta() for delta in batch.baseline_deltas]
            before, *scores = self._arms(module, batch.records, list(arms.values()))
            for measured_at, measured in reversed(list(zip(arms, scores, strict=True))):
                alone = batch.baseline_outcomes if measured_at == "editor" else None
                for outcome, of, b, a in zip(batch.outcomes, alone or batch.outcomes, before, measured, strict=True):
                    outcome.rows.append(edit_row(of, batch.index, module.regime, measured_at, b, a))
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
            bank=BatchedDeltas(module.lm.model, deltas),
            config=self.scoring,
        )
        return [every[start : start + n] for start in range(0, len(every), n)]

    def at_rows(self, trainer: Trainer, module: EditingModule) -> list[dict[str, Any]]:
        """Rows of every record edited so far, where this is a number of edits of `eval_at` (sequential regime)."""
        n = len(module.outcomes)
        return self._so_far(trainer, module, f"at_{n}") if n in self.eval_at else []

    def end_rows(self, trainer: Trainer, module: EditingModule) -> list[dict[str, Any]]:
        """Rows of every record edited, measured on the model as it is now (sequential regime)."""
        if module.regime != "sequential" or self.measure == "edit":
            return []
        return self._so_far(trainer, module, "end")

    def _so_far(self, trainer: Trainer, module: EditingModule, measured_at: str) -> list[dict[str, Any]]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = data.batches[: module.edits_done]
        done = [(index, record) for index, batch in enumerate(batches) for record in batch]
        if self._last is None or self._last[0] != len(done):
            name = "the last edit" if measured_at == "end" else f"{len(done)} edits"
            with stage(f"scoring the model after {name}") as progress:
                records = [record for _, record in done]
                after = score_records(module.lm, records, config=self.scoring, progress=progress, shared=True)
            self._last = (len(done), after)
        more = {} if measured_at == "end" else {"edits": len(done)}
        rows = []
        for (index, record), (info, error), after in zip(done, module.outcomes, self._last[1], strict=True):
            outcome = Outcome(record, info=info, error=error)
            before = self._base[record.request.case_id]
            rows.append(edit_row(outcome, index, module.regime, measured_at, before, after) | more)
        return rows


def edit_row(
    outcome: Outcome,
    index: int,
    regime: str,
    measured_at: str,
    before: Sequence[ProbeScore] | None,
    after: Sequence[ProbeScore] | None,
) -> dict[str, Any]:
    """One line of `results.jsonl`: a record, what was done to it, and every probe before and after."""
    request = asdict(outcome.record.request)
    request["joiner"] = outcome.record.request.joint
    info = {
        key: value for key, value in outcome.info.items() if measured_at != "editor" or not key.startswith("pathway")
    }
    edits = edits_of(measured_at)
    measured = MEASURED[measured_at] if edits is None else f"after {edits} {'edit' if edits == 1 else 'edits'}"
    return result_row(
        outcome.record,
        before,
        after,
        index,
        measured_at,
        protocol={"regime": regime, "measured": measured},
        status="failed" if outcome.error else "edited",
        error=outcome.error,
        request={key: value for key, value in request.items() if key != "case_id"},
        edit=info,
    )


def check_kinds(config: EvalConfig, records: Sequence[EditRecord]) -> None:
    """Whether the kinds of probe to be generated exist: in the data, or in other data that kedit reads.

    Args:
        config: How probes are scored.
        records: All records of the data, whichever are edited.

    Raises:
        KeditError: One does not; names those of the data.
    """
    present = {probe.kind for record in records for probe in record.probes}
    if unknown := [kind for kind in config.generate if kind not in present | set(OF_KEDIT)]:
        raise KeditError(
            f"metrics.scoring.generate: there is no kind of probe {shown(unknown[0], 40)}; "
            f"the data has {', '.join(sorted(present)) or 'none'}"
        )
