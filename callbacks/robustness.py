"""`Robustness`: how the edits stand reworded, scrambled and long-context prompts; a table, and the fluency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console

from kedit.bars import stage
from kedit.batch import EditBatch
from kedit.callbacks.base import EditCallback, editing
from kedit.delta import Delta, edited
from kedit.fluency import fluency
from kedit.lanes import LaneBank
from kedit.requests import EditRequest
from kedit.robustness import as_csv, figures, robustness_table
from kedit.runfolder import RESULTS, read_rows, write_json, write_text

if TYPE_CHECKING:
    from kedit.methods.base import EditingModule

Row = dict[str, Any]


class Robustness(EditCallback):
    """Reports robust queries, where the data has them (`data.queries`); nothing otherwise.

    Prints a table and writes `robustness.json` and `robustness.csv` into the run's folder, all computed from
    the rows of `results.jsonl`.

    Args:
        fluency: Also sample a text from each edited model (100 tokens, top-k 5) and measure how varied it is;
            every row of the results then has `fluency` (before and after, in bits).
        resamples: Bootstrap resamples behind the intervals.
    """

    def __init__(self, fluency: bool = True, resamples: int = 2000) -> None:
        self.fluency, self.resamples = fluency, resamples
        self._base: dict[str, float | None] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Samples from the unedited model once, where later batches are edited on top of earlier ones."""
        module = editing(pl_module)
        if module.regime != "sequential" or not (self.fluency and _has_queries(trainer)):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        requests = [record.request for batch in data.batches[: trainer.max_epochs] for record in batch]
        with stage("fluency of the unedited model"):
            values = _fluency(module, requests)
        self._base = {request.case_id: value for request, value in zip(requests, values, strict=True)}

    def on_rows(self, trainer: Trainer, module: EditingModule, rows: list[Row], batch: EditBatch | None) -> None:
        """Adds the fluency to rows about to be written."""
        if not (rows and self.fluency and _has_queries(trainer)):
            return
        requests = [EditRequest(row["case_id"], **row["request"]) for row in rows]
        if module.regime == "sequential" or batch is None:
            before = [self._base[request.case_id] for request in requests]
            after = _fluency(module, requests)
        elif module.regime == "batch":
            before = _fluency(module, requests)
            after: list[float | None] = [None] * len(rows)
            for when, deltas in (("edit", batch.deltas), ("editor", batch.plain or [])):
                mine = [i for i, row in enumerate(rows) if row["when"] == when]
                with edited(module.lm.model, *(delta for delta in deltas if delta is not None)):
                    for i, value in zip(mine, _fluency(module, [requests[i] for i in mine]), strict=True):
                        after[i] = value
        else:
            lane = {("edit", record.request.case_id): i for i, record in enumerate(batch.records)}
            lane |= {("editor", case): len(batch.records) + i for (_, case), i in lane.items()}
            bank = LaneBank(module.lm.model, [d or Delta() for d in [*batch.deltas, *(batch.plain or [])]])
            lanes = [-1] * len(requests) + [lane[row["when"], row["case_id"]] for row in rows]
            both = _fluency(module, requests * 2, lanes, bank)
            before, after = both[: len(requests)], both[len(requests) :]
        for row, b, a in zip(rows, before, after, strict=True):
            row["fluency"] = {"before": _rounded(b), "after": _rounded(a)}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The table and the files."""
        if not _has_queries(trainer):
            return
        folder = Path(trainer.default_root_dir)
        lines = figures(read_rows(folder / RESULTS), self.resamples)
        write_json(folder / "robustness.json", {"figures": lines})
        write_text(folder / "robustness.csv", as_csv(lines))
        if lines:
            Console().print(robustness_table(lines))


def _has_queries(trainer: Trainer) -> bool:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return data.queries is not None


def _fluency(
    module: EditingModule, requests: Sequence[EditRequest], lanes: list[int] | None = None, bank: LaneBank | None = None
) -> list[float | None]:
    texts, seeds = ([request.text.strip() for request in requests], [request.case_id for request in requests])
    return fluency(module.lm, texts, [f"{module.seed}/{seed}" for seed in seeds], lanes, bank)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
