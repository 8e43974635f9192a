"""`ResultsWriter`: what was measured goes to disk, record by record, with everything needed to repeat it."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from kedit import processes
from kedit.batch import EditBatch
from kedit.callbacks.base import EditCallback, editing, tell
from kedit.callbacks.metrics import MEASURED, EditMetrics
from kedit.delta import Delta
from kedit.deltafile import save_delta
from kedit.provenance import provenance
from kedit.runfolder import RESULTS, SUMMARY, append_rows, keep_rows, read_rows, write_json
from kedit.summary import summarise

if TYPE_CHECKING:
    from kedit.methods.base import EditingModule


class ResultsWriter(EditCallback):
    """Writes `results.jsonl`, `run.json`, `summary.json` and deltas into the trainer's `default_root_dir`.

    A line is appended and flushed after every edit batch, so that a kill loses at most the edit under way;
    a resumed run first cuts off the lines that its checkpoint does not vouch for.

    Args:
        save_deltas: Keep the deltas as folders that can be applied later: `delta/` for the whole run in the
            sequential regime, `deltas/CASE_ID/` for each edit otherwise.
        resamples: Bootstrap resamples behind the intervals of the summary.
    """

    def __init__(self, save_deltas: bool = True, resamples: int = 2000) -> None:
        self.save_deltas, self.resamples = save_deltas, resamples
        self.summary: dict[str, Any] | None = None
        self._seconds, self._edits = 0.0, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cuts an interrupted file back."""
        folder = _folder(trainer)
        if not processes.first():
            return
        folder.mkdir(parents=True, exist_ok=True)
        keep_rows(folder / RESULTS, editing(pl_module).resumed_at)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what the run is, now that everything is loaded."""
        if processes.first():
            write_json(_folder(trainer) / "run.json", self._run(trainer, editing(pl_module)))

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Appends the batch's rows."""
        alone = module.regime == "single"  # each process edits records of its own
        told = (len(batch.records), batch.seconds)
        done = processes.gather(told) if alone else [told]
        self._edits += sum(n for n, _ in done)
        self._seconds += max(seconds for _, seconds in done)
        self._append(trainer, module, [row for outcome in batch.outcomes for row in outcome.rows], batch)
        if self.save_deltas and (alone or (module.regime == "batch" and processes.first())):
            names = [r.request.case_id for r in batch.records] if alone else [f"batch-{batch.index}"]
            for name, delta in zip(names, batch.deltas, strict=True):
                if delta is not None:
                    rows = [row for o in batch.outcomes for row in o.rows if not alone or row["case_id"] == name]
                    save_delta(_folder(trainer) / "deltas" / _safe(name), delta, _card(module, rows))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the end of a sequential run, and writes its delta and the summary."""
        module, folder = editing(pl_module), _folder(trainer)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EditMetrics):
                self._append(trainer, module, callback.end_rows(module), None)
        if not processes.first():
            return
        rows = list(read_rows(folder / RESULTS))
        if self.save_deltas and module.regime == "sequential" and module.deltas:
            save_delta(folder / "delta", Delta.concat(module.deltas), _card(module, rows))
        run = self._run(trainer, module)
        moments = dict.fromkeys(row["when"] for row in rows)
        failed = {row["case_id"]: row["error"] for row in rows if row["status"] == "failed"}
        self.summary = run | {
            "failed": failed,
            "timing": {
                "edits": self._edits,
                "seconds_editing": round(self._seconds, 3),
                **({"processes": processes.count()} if processes.count() > 1 else {}),
            },  # since the run was started or resumed
            "results": {when: summarise(rows, when, resamples=self.resamples) for when in moments},
        }
        write_json(folder / SUMMARY, self.summary)

    def _append(
        self, trainer: Trainer, module: EditingModule, rows: list[dict[str, Any]], batch: EditBatch | None
    ) -> None:
        """Lets every callback add to the rows, and writes those of all processes, in the order of their batches."""
        if rows:
            tell(trainer, "on_rows", module, rows, batch)
        if module.regime == "single":
            rows = [row for own in processes.gather(rows) for row in own]
        if processes.first():
            append_rows(_folder(trainer) / RESULTS, rows)

    def _run(self, trainer: Trainer, module: EditingModule) -> dict[str, Any]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        measured = [c for c in trainer.callbacks if isinstance(c, EditMetrics)]  # type: ignore[attr-defined]
        when = measured[0].measure if measured and module.regime == "sequential" else "edit"
        return {
            "protocol": {
                "regime": module.regime,
                "measured": MEASURED[when],
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


def _card(module: EditingModule, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a delta's card says: where it came from, and what it was seen to do."""
    slim = [{k: row[k] for k in ("case_id", "when", "status", "request", "edit")} for row in rows]
    return module.describe() | {"requests": slim, "provenance": provenance()}


def _safe(name: str) -> str:
    """A case id as a folder name; a short hash keeps apart two ids that become alike."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
