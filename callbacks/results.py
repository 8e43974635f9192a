"""`ResultsWriter`: what was measured goes to disk, record by record, with everything needed to repeat it."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer

from kedit.callbacks.protocol import followed
from kedit.delta.delta import Delta
from kedit.delta.serialization import save_delta
from kedit.errors import KeditError, within
from kedit.methods.base.callback import EditCallback, Row, call_hooks, editing
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.views import accumulates, arms_of
from kedit.results.costs import CostsFile, cost_lines, costs_of, delta_size
from kedit.results.curve import as_csv, draw
from kedit.results.intervals import RESAMPLES
from kedit.results.rows import MEASURED, edit_row, without_probes
from kedit.results.run_results import RunResults
from kedit.runtime import distributed
from kedit.runtime.files import make_folder, write_json, write_text
from kedit.runtime.folder_name import folder_name
from kedit.runtime.journal import tensor_bytes
from kedit.runtime.kept import bytes_kept, peak_memory
from kedit.runtime.provenance import provenance
from kedit.runtime.results_file import ResultsFile
from kedit.runtime.run_folder import SUMMARY

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule

VOUCHED, PROTOCOL = "kedit_results", "kedit_protocol"  # in a checkpoint


class ResultsWriter(EditCallback):
    """Writes `results.jsonl`, `run.json`, `summary.json` and deltas into the trainer's `default_root_dir`.

    With `metrics.eval_at` also `curve.csv` and `curve.png`, and `curve` in the summary.

    What each edit took of time, and how large its delta is, is in `costs.jsonl`.

    Rows are appended and flushed after every edit batch, so that a kill loses at most the edit under way;
    a resumed run first cuts off the lines that its checkpoint does not vouch for. Then and at the end, lines that were
    lost, altered or doubled are named, and those that cannot be had again are in the summary (`lost`).

    When training ends it asks all callbacks for their last rows (`on_last_edit`), sums up, and gives them the summary
    and the rows (`on_summary`).

    Args:
        save_deltas: Keep the deltas as folders that can be applied later: `delta/` for the whole run in the
            sequential regime, `deltas/CASE_ID/` for each edit otherwise.
        resamples: Bootstrap resamples behind the intervals of the summary.
    """

    def __init__(self, save_deltas: bool = True, resamples: int = 2000) -> None:
        within("results.resamples", resamples, 1, RESAMPLES)
        self.save_deltas, self.resamples = save_deltas, resamples
        self._summary: dict[str, Any] | None = None
        self._seconds, self._cpu_seconds, self._edits = 0.0, 0.0, 0
        self._costs: CostsFile | None = None  # of the first process
        self._file: ResultsFile | None = None  # of the first process
        self._vouched: tuple[Path, Any] | None = None  # the checkpoint gone on from, and what it says of the lines

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes up what a checkpoint says of the lines.

        Raises:
            KeditError: They were measured under another named protocol.
        """
        ours = followed(trainer)
        if (theirs := checkpoint.get(PROTOCOL, ours)) != ours:
            raise KeditError(f"this checkpoint is of another run: its protocol is {theirs}, here it is {ours}")
        self._vouched = (Path(str(trainer.ckpt_path)), checkpoint.get(VOUCHED))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lets a checkpoint vouch for the lines so far."""
        if self._file is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            checkpoint[VOUCHED] = self._file.card()
            checkpoint[PROTOCOL] = followed(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cuts an interrupted file back."""
        if not distributed.is_main():
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        folder, done = _folder(trainer), editing(pl_module).resumed_at
        make_folder(folder, "run.root")
        self._file = ResultsFile(folder)
        self._costs = CostsFile(folder)
        self._costs.begin(done)
        self._file.begin(done, sum(map(len, data.batches[:done])), self._vouched)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what the run is, now that everything is loaded."""
        if distributed.is_main():
            write_json(_folder(trainer) / "run.json", self._run(trainer, editing(pl_module)))

    def on_complete_rows(self, trainer: Trainer, module: EditingModule, rows: list[Row]) -> None:
        """Appends them, in the order of their batches."""
        if self._file is not None:
            self._file.append(rows)

    def on_edit_end(self, trainer: Trainer, module: EditingModule, batch: EditBatch) -> None:
        """Counts the batch's edits, and keeps its deltas."""
        alone = module.regime == "single"  # each process edits records of its own
        spent = distributed.gather((batch.seconds, batch.cpu_seconds))
        cpu_seconds = batch.cpu_seconds if alone else sum(cpu for _, cpu in spent)  # several may work on one batch
        cases, sizes = [record.request.case_id for record in batch.records], list(map(_size, batch.deltas))
        lines = cost_lines(cases, batch.index, batch.seconds, cpu_seconds, sizes)
        if alone:
            lines = [line for part in distributed.gather(lines) for line in part]
        self._edits += len(lines)
        self._seconds += max(seconds for seconds, _ in spent)
        self._cpu_seconds += sum(cpu for _, cpu in spent)
        if self._costs is not None and lines:
            self._costs.append(lines)
        if self.save_deltas and (alone or (module.regime == "batch" and distributed.is_main())):
            names = [r.request.case_id for r in batch.records] if alone else [f"batch-{batch.index}"]
            edits = _edits_of(module.regime, batch)
            for name, delta in zip(names, batch.deltas, strict=True):
                if delta is not None:
                    card = _card(module, [edit for edit in edits if not alone or edit["case_id"] == name])
                    save_delta(_folder(trainer) / "deltas" / folder_name(name), delta, card)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sums up, writes the delta and the curve of a sequential run, and lets the other callbacks report."""
        module, folder = editing(pl_module), _folder(trainer)
        module.finish_run()
        call_hooks(trainer, "on_last_edit", module)
        if self._file is None:
            return
        lost = self._file.check()
        results = RunResults.of(self._file, self.resamples)
        size: float | None
        if accumulates(module.regime):
            delta = Delta.concat(module.deltas)
            if self.save_deltas and delta.paths:
                save_delta(folder / "delta", delta, _card(module, results.edits))
            size = _size(delta)
        else:
            size = delta_size(costs_of(folder).values(), module.regime)
        summary = self._run(trainer, module) | {
            "failed": results.failed,
            "timing": {
                "edits": self._edits,
                "seconds_editing": round(self._seconds, 3),
                "cpu_seconds_editing": round(self._cpu_seconds, 3),
                "peak_memory": peak_memory(module.device),
                **({"processes": distributed.world_size()} if distributed.world_size() > 1 else {}),
            },  # since the run was started or resumed
            "delta_bytes": size,
            "results": results.moments,
        }
        if lost:
            summary["lost"] = lost
        if accumulates(module.regime):
            summary["kept"] = bytes_kept(module.edits(), len(module.outcomes))
        if results.curve:
            summary["curve"] = results.curve
            write_text(folder / "curve.csv", as_csv(results.curve))
            draw(results.curve, folder / "curve.png", summary["method"], summary["data"])
        self._summary = summary
        call_hooks(trainer, "on_summary", module, summary, self._file)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the summary, which says that the run has finished: last, when all callbacks have written theirs."""
        if self._summary is not None:
            write_json(_folder(trainer) / SUMMARY, self._summary)

    def _run(self, trainer: Trainer, module: EditingModule) -> dict[str, Any]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        about = {
            "protocol": {
                "regime": module.regime,
                "measured": MEASURED["edit"],
                "scorer": "teacher-forced probabilities and argmax; free greedy generation where named",
                "scoring": None,
                "fast_dev_run": bool(trainer.fast_dev_run),  # type: ignore[attr-defined]
                **module.lm.protocol,
            },
            "method": module.describe(),
            "data": data.describe(),
            "provenance": provenance(),
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        call_hooks(trainer, "on_describe", module, about)
        return about


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _size(delta: Delta | None) -> int | None:
    """Bytes of its tensors."""
    if delta is None:
        return None
    return tensor_bytes([change.tensors() for _, own in delta.items() for change in own])


def _edits_of(regime: str, batch: EditBatch) -> list[dict[str, Any]]:
    """What the cards of a batch's deltas say of its records: of each, the editor alone, then the method."""
    return [
        without_probes(edit_row(record, outcome.info, outcome.error, batch.index, regime, arm.measured_at))
        for i, record in enumerate(batch.records)
        for arm in reversed(arms_of(regime, batch))
        for outcome in [arm.outcomes[i]]
    ]


def _card(module: EditingModule, edits: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What a delta's card says: where it came from, and what was asked of it."""
    return module.describe() | {"requests": list(edits), "provenance": provenance()}
