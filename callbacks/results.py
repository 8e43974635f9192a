"""`ResultsWriter`: what was measured goes to disk, record by record, with everything needed to repeat it."""

from __future__ import annotations

import datetime
import logging
import resource
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from kedit.callbacks.metrics import MEASURED, EditMetrics, edit_row
from kedit.delta.delta import Delta
from kedit.delta.serialization import save_delta
from kedit.errors import KeditError, within
from kedit.methods.base.callback import EditCallback, call_hooks, editing
from kedit.methods.base.edit_batch import EditBatch, Outcome
from kedit.results.curve import as_csv, draw
from kedit.results.intervals import RESAMPLES
from kedit.results.rows import edits_of
from kedit.results.summary import SummaryAccumulator
from kedit.runtime import distributed
from kedit.runtime.folder_name import folder_name
from kedit.runtime.journal import tensor_bytes
from kedit.runtime.ledger import LEDGER, Ledger, compare, put_right, told
from kedit.runtime.provenance import provenance
from kedit.runtime.run_folder import (
    CHECKPOINT,
    RESULTS,
    SUMMARY,
    append_rows,
    keep_rows,
    make_folder,
    read_rows,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule

VOUCHED = "kedit_results"  # in a checkpoint

log = logging.getLogger(__name__)


class ResultsWriter(EditCallback):
    """Writes `results.jsonl`, `run.json`, `summary.json` and deltas into the trainer's `default_root_dir`.

    With `metrics.eval_at` also `curve.csv` and `curve.png`, and `curve` in the summary.

    A line is appended and flushed after every edit batch, so that a kill loses at most the edit under way;
    a resumed run first cuts off the lines that its checkpoint does not vouch for. Then and at the end, lines that were
    lost, altered or doubled are named, and those that cannot be had again are in the summary (`lost`).

    Args:
        save_deltas: Keep the deltas as folders that can be applied later: `delta/` for the whole run in the
            sequential regime, `deltas/CASE_ID/` for each edit otherwise.
        resamples: Bootstrap resamples behind the intervals of the summary.
    """

    def __init__(self, save_deltas: bool = True, resamples: int = 2000) -> None:
        within("results.resamples", resamples, 1, RESAMPLES)
        self.save_deltas, self.resamples = save_deltas, resamples
        self.summary: dict[str, Any] | None = None
        self._seconds, self._edits = 0.0, 0
        self._ledger: Ledger | None = None
        self._vouched: tuple[Path, Any] | None = None  # the checkpoint gone on from, and what it says of the ledger

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes up what a checkpoint says of the lines."""
        self._vouched = (Path(str(trainer.ckpt_path)), checkpoint.get(VOUCHED))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lets a checkpoint vouch for the lines so far."""
        if self._ledger is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            checkpoint[VOUCHED] = self._ledger.save()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cuts an interrupted file back."""
        folder, done = _folder(trainer), editing(pl_module).resumed_at
        if not distributed.is_main():
            return
        make_folder(folder, "run.root")
        self._ledger = Ledger(folder / CHECKPOINT.parent / LEDGER)
        if done and self._take_back(folder):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        keep_rows(folder / RESULTS, done, sum(map(len, data.batches[:done])))
        self._ledger.adopt(folder / RESULTS)

    def _take_back(self, folder: Path) -> bool:
        """The lines that the checkpoint vouches for, from where it is; False where that cannot be told."""
        assert self._ledger is not None
        assert self._vouched is not None
        path, card = self._vouched
        try:
            self._ledger.restore(path.parent / LEDGER, card)
        except KeditError as error:
            log.warning("the result lines of the edits before are not checked: %s", error)
            return False
        self._compare(folder / RESULTS, path.parent.parent / RESULTS)
        return True

    def _compare(self, path: Path, source: Path) -> list[str]:
        """Holds a results file against the ledger, says what is wrong, and puts the run's own right; what is lost."""
        assert self._ledger is not None
        found = compare(source, self._ledger.entries)
        for line in told(source, found, self._ledger.entries):
            log.warning("%s", line)
        if not found.right or source.resolve() != path.resolve():
            put_right(path, source, found)
        return [str(entry) for entry in found.lost]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what the run is, now that everything is loaded."""
        if distributed.is_main():
            write_json(_folder(trainer) / "run.json", self._run(trainer, editing(pl_module)))

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Appends the batch's rows."""
        alone = module.regime == "single"  # each process edits records of its own
        told = (len(batch.records), batch.seconds)
        done = distributed.gather(told) if alone else [told]
        self._edits += sum(n for n, _ in done)
        self._seconds += max(seconds for _, seconds in done)
        self._append(trainer, module, [row for outcome in batch.outcomes for row in outcome.rows], batch)
        for metrics in _metrics(trainer):
            if module.regime == "sequential":
                self._append(trainer, module, metrics.at_rows(trainer, module), None)
        if self.save_deltas and (alone or (module.regime == "batch" and distributed.is_main())):
            names = [r.request.case_id for r in batch.records] if alone else [f"batch-{batch.index}"]
            for name, delta in zip(names, batch.deltas, strict=True):
                if delta is not None:
                    rows = [row for o in batch.outcomes for row in o.rows if not alone or row["case_id"] == name]
                    save_delta(_folder(trainer) / "deltas" / folder_name(name), delta, _card(module, map(_slim, rows)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the end of a sequential run, writes its delta and curve, and sums up."""
        module, folder = editing(pl_module), _folder(trainer)
        module.finish_run()
        for metrics in _metrics(trainer):
            self._append(trainer, module, metrics.end_rows(trainer, module), None)
        self._append_unfit(trainer, module)
        if not distributed.is_main():
            return
        lost = self._compare(folder / RESULTS, folder / RESULTS)
        boards: dict[str, SummaryAccumulator] = {}
        failed: dict[str, str] = {}
        about: list[dict[str, Any]] = []
        for row in read_rows(folder / RESULTS):  # one at a time: there may be many
            boards.setdefault(row["measured_at"], SummaryAccumulator(row["measured_at"])).add(row)
            if row["status"] == "failed":
                failed[row["case_id"]] = row["error"]
            if edits_of(row["measured_at"]) is None:
                about.append(_slim(row))
        if self.save_deltas and module.regime == "sequential" and module.deltas:
            save_delta(folder / "delta", Delta.concat(module.deltas), _card(module, about))
        found = {measured_at: board.summary(self.resamples) for measured_at, board in boards.items()}
        curve = [
            {"edits": edits_of(measured_at), "measured_at": measured_at, "results": own}
            for measured_at, own in found.items()
            if edits_of(measured_at)
        ]
        self.summary = self._run(trainer, module) | {
            "failed": failed,
            "timing": {
                "edits": self._edits,
                "seconds_editing": round(self._seconds, 3),
                **({"processes": distributed.world_size()} if distributed.world_size() > 1 else {}),
            },  # since the run was started or resumed
            "results": {measured_at: own for measured_at, own in found.items() if edits_of(measured_at) is None},
        }
        if lost:
            self.summary["lost"] = lost
        if module.regime == "sequential":
            self.summary["kept"] = _kept(module)
        if curve:
            self.summary["curve"] = curve
            write_text(folder / "curve.csv", as_csv(curve))
            draw(curve, folder / "curve.png", self.summary["method"], self.summary["data"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the summary, which says that the run has finished: last, when all callbacks have written theirs."""
        if self.summary is not None:
            write_json(_folder(trainer) / SUMMARY, self.summary)

    def _append_unfit(self, trainer: Trainer, module: EditingModule) -> None:
        """Rows of the records that failed before anything was edited: nothing of them was measured."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        ends = module.regime == "sequential" and any(metrics.measure != "edit" for metrics in _metrics(trainer))
        rows = [
            edit_row(Outcome(record, error), len(data.batches), module.regime, "end" if ends else "edit", None, None)
            for record, error in data.unfit.values()
        ]
        if rows and distributed.is_main():
            self._write(trainer, rows)

    def _append(
        self, trainer: Trainer, module: EditingModule, rows: list[dict[str, Any]], batch: EditBatch | None
    ) -> None:
        """Lets every callback add to the rows, and writes those of all processes, in the order of their batches."""
        if rows:
            call_hooks(trainer, "on_rows", module, rows, batch)
        if module.regime == "single":
            rows = [row for own in distributed.gather(rows) for row in own]
        if rows and distributed.is_main():
            self._write(trainer, rows)

    def _write(self, trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        lines = append_rows(_folder(trainer) / RESULTS, rows)
        if self._ledger is not None:
            self._ledger.note(rows, lines)

    def _run(self, trainer: Trainer, module: EditingModule) -> dict[str, Any]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        measured = _metrics(trainer)
        measured_at = measured[0].measure if measured and module.regime == "sequential" else "edit"
        return {
            "protocol": {
                "regime": module.regime,
                "measured": MEASURED[measured_at],
                "scorer": "teacher-forced probabilities and argmax; free greedy generation where named",
                "scoring": asdict(measured[0].scoring) if measured else None,
                "fast_dev_run": bool(trainer.fast_dev_run),  # type: ignore[attr-defined]
            },
            "method": module.describe(),
            "data": data.describe(),
            "provenance": provenance(),
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _metrics(trainer: Trainer) -> list[EditMetrics]:
    return [c for c in trainer.callbacks if isinstance(c, EditMetrics)]  # type: ignore[attr-defined]


def _slim(row: dict[str, Any]) -> dict[str, Any]:
    """What a delta's card says of a row."""
    return {k: row[k] for k in ("case_id", "measured_at", "status", "request", "edit")}


def _card(module: EditingModule, requests: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What a delta's card says: where it came from, and what it was seen to do."""
    return module.describe() | {"requests": list(requests), "provenance": provenance()}


def _kept(module: EditingModule) -> dict[str, Any]:
    """What the method had to keep of the edits of a sequential run, in bytes, and told in the log."""
    edits, n = module.edits(), len(module.outcomes)
    deltas, state = tensor_bytes(edits["deltas"]), tensor_bytes(edits["state"])
    each = (deltas + state) / max(n, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    also = f" and {state / 1e6:.2f} MB of the method's state" if state else ""
    size = f"deltas of {deltas / 1e6:.2f} MB{also}, {each / 1e3:.2f} kB an edit"
    log.info("kept of %d edits: %s; memory of this process at its peak: %.0f MiB", n, size, peak)
    return {"edits": n, "deltas_bytes": deltas, "state_bytes": state, "bytes_per_edit": round(each, 1)}
