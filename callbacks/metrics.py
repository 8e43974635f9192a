"""`EditMetrics`: scores every probe before and after the edit, in large batches, and pushes rows to be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningModule, Trainer

from kedit.data.derived import DERIVED
from kedit.data.robust_queries import KINDS, REPLACED
from kedit.delta.lanes import BatchedDeltas
from kedit.errors import KeditError, shown
from kedit.evaluation.score import EvalConfig, check_probes, score_records
from kedit.methods.base.callback import EditCallback, Row, call_hooks, editing, push_rows
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.views import BEFORE, accumulates, arms_of, measure
from kedit.request import EditRecord
from kedit.results.curve import check_counts
from kedit.results.rows import MEASURED, ProbeScore, edit_row
from kedit.runtime.progress import stage

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule

OF_KEDIT = (
    "rewrite", "paraphrase", "neighborhood", "portability", "single_hop", "rewording", REPLACED, *KINDS, *DERIVED,
)  # fmt: skip
"""Kinds of probe that data of kedit's own can have; not all have each."""


class EditMetrics(EditCallback):
    """Measures what the edits did, and gives the rows to all callbacks (`on_rows`, `on_complete_rows`).

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
        if self.eval_at and not accumulates(regime):
            raise KeditError(
                f"metrics.eval_at: in the {regime} regime edits do not accumulate; use edit.regime: sequential"
            )

    def on_check_record(self, trainer: Trainer, module: EditingModule, record: EditRecord) -> None:
        """Every probe must fit, with its answers and what is generated after it."""
        check_probes(module.lm, record, self.scoring)

    def on_describe(self, trainer: Trainer, module: EditingModule, about: dict[str, Any]) -> None:
        """When records are measured, and how probes are scored."""
        measured = MEASURED[self.measure if accumulates(module.regime) else "edit"]
        about["protocol"] |= {"measured": measured, "scoring": described(self.scoring)}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the unedited model once, where later batches are edited on top of earlier ones.

        Raises:
            KeditError: A number of `eval_at` is not at the end of an edit batch.
        """
        module = editing(pl_module)
        if not accumulates(module.regime):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = data.batches[: trainer.max_epochs]
        check_counts(self.eval_at, [0, *accumulate(map(len, batches))])
        records = [record for batch in batches for record in batch]
        with stage("asking the unedited model (once a run)") as progress:
            scores = score_records(module.lm, records, config=self.scoring, progress=progress, shared=True)
        self._base = {record.request.case_id: s for record, s in zip(records, scores, strict=True)}

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Pushes rows of the batch, and of every record so far where this is a number of edits of `eval_at`."""
        late = accumulates(module.regime) and self.measure == "end"
        push_rows(trainer, module, [] if late else self._batch_rows(module, batch), batch)
        if accumulates(module.regime) and (n := len(module.outcomes)) in self.eval_at:
            push_rows(trainer, module, self._rows_so_far(trainer, module, f"at_{n}"))

    def on_last_edit(self, trainer: Trainer, module: EditingModule) -> None:
        """Pushes rows of every record, measured on the model as it is now, and of those that could not be edited."""
        at_end = accumulates(module.regime) and self.measure != "edit"
        if at_end:
            push_rows(trainer, module, self._rows_so_far(trainer, module, "end"))
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        measured_at = "end" if at_end else "edit"
        unfit = [
            edit_row(record, {}, error, len(data.batches), module.regime, measured_at, protocol=module.lm.protocol)
            for record, error in data.unfit.values()
        ]
        if unfit:  # nothing was measured of them, and nothing can be added
            call_hooks(trainer, "on_complete_rows", module, unfit)

    def _batch_rows(self, module: EditingModule, batch: EditBatch) -> list[Row]:
        """Rows of a batch just edited: of each record, what the editor alone did, then the method."""
        arms, records = arms_of(module.regime, batch), batch.records
        moments = [BEFORE, *(arm.measured_at for arm in arms)]
        asks = [(moment, record.request.case_id) for moment in moments for record in records]
        probed = records * len(moments)

        def run(
            numbers: list[int], lanes: list[int] | None, bank: BatchedDeltas | None, shared: bool
        ) -> list[list[ProbeScore]]:
            return score_records(module.lm, [probed[i] for i in numbers], lanes, bank, self.scoring, shared=shared)

        scores = dict(zip(asks, measure(module.regime, module.lm.model, batch, asks, run, self._base), strict=True))
        rows = []
        for i, record in enumerate(records):
            case = record.request.case_id
            for arm in reversed(arms):
                about = (record, arm.outcomes[i].info, arm.outcomes[i].error, batch.index, module.regime)
                both = scores[BEFORE, case], scores[arm.measured_at, case]
                rows.append(edit_row(*about, arm.measured_at, *both, module.lm.protocol))
        return rows

    def _rows_so_far(self, trainer: Trainer, module: EditingModule, measured_at: str) -> list[Row]:
        """Rows of every record edited so far, measured on the model as it is now (sequential regime)."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = data.batches[: module.edits_done]
        done = [(index, record) for index, batch in enumerate(batches) for record in batch]
        if self._last is None or self._last[0] != len(done) or module.finished:  # other weights than after that edit
            name = "the last edit" if measured_at == "end" else f"{len(done)} edits"
            with stage(f"asking the model after {name}") as progress:
                records = [record for _, record in done]
                scores = score_records(module.lm, records, config=self.scoring, progress=progress, shared=True)
            self._last = (len(done), scores)
        more = {} if measured_at == "end" else {"edits": len(done)}
        rows = []
        for (index, record), (info, error), after in zip(done, module.outcomes, self._last[1], strict=True):
            before = self._base[record.request.case_id]
            about = (record, info, error, index, module.regime, measured_at)
            rows.append(edit_row(*about, before, after, module.lm.protocol) | more)
        return rows


def described(config: EvalConfig) -> dict[str, Any]:
    """How probes are scored, for a protocol: runs can be compared with those of a kedit that knew fewer options."""
    scoring = asdict(config)
    if not config.wild:
        del scoring["wild"]
    if not config.wild or config.wild_contexts == ["none"]:
        del scoring["wild_contexts"]
    if not config.wild or not config.contains:
        del scoring["contains"]
    return scoring


def check_kinds(config: EvalConfig, records: Sequence[EditRecord]) -> None:
    """Whether the kinds of probe to be generated exist: in the data, or in other data that kedit reads.

    Args:
        config: How probes are scored.
        records: All records of the data, whichever are edited.

    Raises:
        KeditError: One does not; names those of the data. Or there are none that `wild_contexts` and `contains` serve.
    """
    for option, given in (("wild_contexts", config.wild_contexts != ["none"]), ("contains", config.contains)):
        if given and not config.wild:
            raise KeditError(
                f"metrics.scoring.{option}: it is of answers that nobody asks for; name kinds of probe in "
                "metrics.scoring.wild, e.g. [rewrite]"
            )
    present = {probe.kind for record in records for probe in record.probes}
    for option, kinds in (("generate", config.generate), ("wild", config.wild)):
        if unknown := [kind for kind in kinds if kind not in present | set(OF_KEDIT)]:
            raise KeditError(
                f"metrics.scoring.{option}: there is no kind of probe {shown(unknown[0], 40)}; "
                f"the data has {', '.join(sorted(present)) or 'none'}"
            )
