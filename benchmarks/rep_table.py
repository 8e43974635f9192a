"""REP and its ablations beside their editor, on the same edits: the tables of docs/experiments/rep_smollm2.md.

    python benchmarks/rep_table.py --config configs/rome_smollm2.yaml --known \\
        --data ../shared/data/rep_counterfact_test.json --corpus ../shared/data/wikitext2_test.txt \\
        --arms trained closed_form --save rep_rome_test

Every record is edited once, on the unedited model (single regime); each arm adds its adapters to the very same
edit, so arms differ in nothing else. Records, probes and variants are those of `kedit fit` with the same options.
With `--edits FOLDER` the edits are kept there and used again: more arms can be measured later on the same edits.
With it rows that the file has already are not measured again; without it the file begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import save
from editing import editor_of, fit, names, parser, robust_data, rows_file, show

from kedit.delta.delta import Delta
from kedit.delta.lanes import BatchedDeltas
from kedit.evaluation.score import EvalConfig, ProbeScore, score_records
from kedit.methods import REP, EditingModule
from kedit.methods.base.callback import EditCallback
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.phase import Phase
from kedit.methods.rep import AdapterConfig
from kedit.results.intervals import paired
from kedit.results.robustness import FIGURES, figures
from kedit.results.rows import result_row
from kedit.runtime.run_folder import append_rows, read_rows

KINDS = ["rewrite", "paraphrase_id", "paraphrase_ood", "shuffle_id", "shuffle_ood", "long_context", "neighborhood"]
C = AdapterConfig()
ARMS: dict[str, dict[str, Any]] = {  # what is given to REP besides its editor
    "trained": {},
    "closed_form": {"mode": "closed_form"},
    "parity": {"parity": True},
    "mlp_gate": {"adapter": replace(C, gate="mlp")},
    "no_gate": {"adapter": replace(C, gate="none")},
    "no_projection": {"adapter": replace(C, projection=False)},
    "no_consistency": {"adapter": replace(C, alpha=0.0)},
    "no_normalisation": {"adapter": replace(C, normalise=False)},
    "no_strength": {"adapter": replace(C, strength=0.0, aggregation=1.0)},
    "not_anchored": {"adapter": replace(C, anchored=False)},
    "reach_1": {"adapter": replace(C, edit_strength=1.0)},
    "reach_1.5": {"adapter": replace(C, edit_strength=1.5)},
    "no_phrases": {"adapter": replace(C, phrases=0)},
    "no_hysteresis": {"adapter": replace(C, hysteresis=0.0)},
    "hysteresis_2": {"adapter": replace(C, hysteresis=2.0)},
    "hysteresis_3": {"adapter": replace(C, hysteresis=3.0)},
    "tau_0.3": {"adapter": replace(C, threshold=0.3)},
    "tau_0.5": {"adapter": replace(C, threshold=0.5)},
    "tau_0.7": {"adapter": replace(C, threshold=0.7)},
    "tau_0.9": {"adapter": replace(C, threshold=0.9)},
}


def drive(edit: Generator[Phase, None, Any]) -> Any:
    """Runs phases to their end, as the trainer does."""
    try:
        phase = next(edit)
        while True:
            if phase.done:  # nothing to train
                phase = next(edit)
                continue
            optimizer = phase.optimizer()
            for _ in range(phase.steps):
                optimizer.zero_grad()
                loss = phase.loss()
                if loss is None or phase.done:
                    break
                loss.backward()
                phase.before_step()
                optimizer.step()
                phase.after_step()
            phase = next(edit)
    except StopIteration as stop:
        return stop.value


def kept(edit: Callable[[EditBatch], Any], folder: Path) -> Callable[[EditBatch], Any]:
    """`edit` that keeps its edits in `folder` and takes back those that are there."""
    folder.mkdir(parents=True, exist_ok=True)

    def again(batch: EditBatch) -> Generator[Phase, None, Any]:
        files = [folder / f"{record.request.case_id}.pt" for record in batch.records]
        if all(file.exists() for file in files):
            found = [torch.load(file, weights_only=False) for file in files]  # written by this very script
            for outcome, (_, error, info) in zip(batch.outcomes, found, strict=True):
                outcome.error, outcome.info = error, info
            return [delta for delta, _, _ in found]
        deltas = yield from edit(batch)
        for file, delta, outcome in zip(files, deltas, batch.outcomes, strict=True):
            torch.save((delta, outcome.error, outcome.info), file)
        return deltas

    return again


class Arms(EditCallback):
    """Adds the arms' adapters to every edit and measures those that the rows do not have yet."""

    def __init__(self, names: list[str], path: Path) -> None:
        self.names, self.path = names, path
        self.done = {(row["case_id"], row["measured_at"]) for row in read_rows(path)}
        self.arms: dict[str, REP] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for name in self.names:
            arm = REP(pl_module, **ARMS[name])
            arm.trainer = trainer
            arm.start()
            self.arms[name] = arm

    def on_edit_end(self, trainer: Any, module: EditingModule, batch: EditBatch) -> None:
        ids = [record.request.case_id for record in batch.records]
        wanted = [name for name in ("editor", *self.arms) if any((i, name) not in self.done for i in ids)]
        if not wanted:
            return
        deltas, infos = {"editor": batch.deltas}, {"editor": [dict(outcome.info) for outcome in batch.outcomes]}
        for name in wanted:
            if name != "editor":
                torch.manual_seed(batch.index)
                for outcome, info in zip(batch.outcomes, infos["editor"], strict=True):
                    outcome.info = dict(info)
                with torch.enable_grad():
                    deltas[name] = drive(self.arms[name].adapt(batch, batch.deltas))
                infos[name] = [outcome.info for outcome in batch.outcomes]
        scores = self._score(module, batch, [deltas[name] for name in wanted])
        for name, after in zip(wanted, scores[1:], strict=True):
            rows = []
            for i, outcome in enumerate(batch.outcomes):
                more = {"edit": infos[name][i], "error": outcome.error}
                rows.append(result_row(outcome.record, scores[0][i], after[i], batch.index, name, **more))
            append_rows(self.path, rows)
        print(f"{batch.index + 1} of {len(trainer.datamodule.batches)} batches", flush=True)

    def _score(
        self, module: EditingModule, batch: EditBatch, arms: list[list[Delta | None]]
    ) -> list[list[list[ProbeScore]]]:
        """Scores of every record's probes: unedited, then under each arm's deltas."""
        n = len(batch.records)
        bank = BatchedDeltas(module.lm.model, [delta or Delta() for deltas in arms for delta in deltas])
        lanes = [*[-1] * n, *range(n * len(arms))]
        found = score_records(module.lm, batch.records * (1 + len(arms)), lanes, bank, EvalConfig(generate=[]))
        return [found[start : start + n] for start in range(0, len(found), n)]


def differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arm minus the editor, paired by record, in points, with 95 % intervals."""
    found = []
    for kind, metric in FIGURES:
        base = _per_record(rows, "editor", kind, metric)
        for arm in dict.fromkeys(row["measured_at"] for row in rows):
            own = _per_record(rows, arm, kind, metric)
            if arm != "editor" and base:
                a, b = [base[c] for c in base], [own[c] for c in base]
                low, high = paired(a, b)
                point = 100 * (sum(b) - sum(a)) / len(a)
                found.append({"arm": arm, "kind": kind, "points": round(point, 2),
                              "ci": [round(100 * low, 2), round(100 * high, 2)]})  # fmt: skip
    return found


def _per_record(rows: list[dict[str, Any]], arm: str, kind: str, metric: str) -> dict[str, float]:
    found = {}
    for row in rows:
        values = []
        for p in row["probes"]:
            if row["measured_at"] == arm and p["kind"] == kind:
                same = [x == y for x, y in zip(p["before"]["top1"], p["after"]["top1"], strict=True)]
                values.append(float(p["after"]["exact"]) if metric == "exact" else sum(same) / len(same))
        if values:
            found[row["case_id"]] = sum(values) / len(values)
    return found


def main() -> None:
    """Edit, measure, and save the figures."""
    options = parser(__doc__)
    options.add_argument("--arms", nargs="*", default=["trained", "closed_form"], choices=list(ARMS))
    options.add_argument("--edits", type=Path, help="folder of kept edits")
    a = options.parse_args()
    editor = editor_of(a)
    if a.edits:
        vars(editor)["edit"] = kept(editor.edit, a.edits)
    data, path = robust_data(a, KINDS), rows_file(a, again=a.edits is not None)
    fit(editor, data, Arms(a.arms, path))
    ids = {record.request.case_id for record in data.records}
    rows = [row for row in read_rows(path) if row["case_id"] in ids and row["measured_at"] in ("editor", *a.arms)]
    lines = figures(rows)
    show(lines)
    protocol = "single regime, teacher-forced exact match, after each edit"
    about = {"protocol": protocol, "method": editor.describe(), "data_set": data.describe()}
    save(a.save, names(a) | about | {"figures": lines, "difference_to_editor": differences(rows)})


if __name__ == "__main__":
    main()
