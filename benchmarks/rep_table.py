"""REP and its ablations beside their editor, on the same edits: the tables of docs/rep_smollm2.md.

    python benchmarks/rep_table.py --data ../shared/data/rep_counterfact_test.json --known \\
        --corpus ../shared/data/wikitext2_test.txt --editor ROME --arms trained closed_form --save rep_rome_test

Every record is edited once, on the unedited model (single regime); each arm adds its adapters to the very same
edit, so arms differ in nothing else. Records, probes and variants are those of `kedit fit` with the same options.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import save
from lightning.pytorch import Trainer

from kedit import methods
from kedit.batch import EditBatch
from kedit.callbacks.base import EditCallback
from kedit.cli.quiet import quiet_lightning
from kedit.contexts import ContextConfig
from kedit.data import RobustQueries
from kedit.delta import Delta
from kedit.evaluate import EvalConfig, score
from kedit.intervals import paired
from kedit.lanes import LaneBank
from kedit.lm import LMConfig
from kedit.methods import REP, EditingModule
from kedit.methods.phases import Phase
from kedit.queries import QueryConfig
from kedit.rep import AdapterConfig
from kedit.results import result_row
from kedit.robustness import FIGURES, figures

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
    "reach_1": {"adapter": replace(C, reach=1.0)},
    "reach_1.5": {"adapter": replace(C, reach=1.5)},
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
            optimizer = phase.optimizer()
            for _ in range(phase.steps):
                optimizer.zero_grad()
                loss = phase.loss()
                if phase.done:
                    break
                loss.backward()
                optimizer.step()
                phase.after_step()
            phase = next(edit)
    except StopIteration as stop:
        return stop.value


class Arms(EditCallback):
    """Adds the arms' adapters to every edit and measures them all."""

    def __init__(self, names: list[str], path: Path) -> None:
        self.names, self.path = names, path
        self.arms: dict[str, REP] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for name in self.names:
            arm = REP(pl_module, **ARMS[name])
            arm.trainer = trainer
            arm.start()
            self.arms[name] = arm

    def on_edit_end(self, trainer: Any, module: EditingModule, batch: EditBatch) -> None:
        deltas = {"editor": batch.deltas}
        for name, arm in self.arms.items():
            torch.manual_seed(batch.index)
            with torch.enable_grad():
                deltas[name] = drive(arm.adapt(batch, batch.deltas))
            for outcome in batch.outcomes:
                outcome.info.setdefault("arms", {})[name] = outcome.info.pop("pathway", None)
        probes = [p for r in batch.records for p in r.probes]
        counts = [len(r.probes) for r in batch.records]
        every = [d or Delta() for arm in deltas.values() for d in arm]
        lanes = [-1 if arm < 0 else arm * len(counts) + i
                 for arm in range(-1, len(deltas)) for i, n in enumerate(counts) for _ in range(n)]  # fmt: skip
        bank = LaneBank(module.lm.model, every)
        flat = iter(score(module.lm, probes * (1 + len(deltas)), lanes, bank, EvalConfig(generate=[])))
        before = [[next(flat) for _ in range(n)] for n in counts]
        with self.path.open("a", encoding="utf-8") as file:
            for name in deltas:
                for outcome, b, n in zip(batch.outcomes, before, counts, strict=True):
                    after = [next(flat) for _ in range(n)]
                    info = {k: v for k, v in outcome.info.items() if k != "arms"}
                    more = {"edit": info | {"pathway": outcome.info.get("arms", {}).get(name)}, "error": outcome.error}
                    row = result_row(outcome.record, b, after, batch.index, name, **more)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(f"{batch.index + 1} of {len(trainer.datamodule.batches)} batches", flush=True)


def differences(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each arm minus the editor, paired by record, in points, with 95 % intervals."""
    found = []
    for kind, metric in FIGURES:
        base = _per_record(rows, "editor", kind, metric)
        for arm in dict.fromkeys(row["when"] for row in rows):
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
            if row["when"] == arm and p["kind"] == kind:
                same = [x == y for x, y in zip(p["before"]["top1"], p["after"]["top1"], strict=True)]
                values.append(float(p["after"]["exact"]) if metric == "exact" else sum(same) / len(same))
        if values:
            found[row["case_id"]] = sum(values) / len(values)
    return found


def main() -> None:
    """Edit, measure, and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--corpus", required=True, help="text for the long contexts")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--editor", default="ROME")
    parser.add_argument("--arms", nargs="+", default=["trained", "closed_form"], choices=list(ARMS))
    parser.add_argument("--known", action="store_true", help="only facts that the model gives itself")
    parser.add_argument("--records", type=int)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--contexts", type=int, default=5, help="of each length; 10 is the published number")
    parser.add_argument("--set", nargs="*", default=[], help="options of the editor, as NAME=JSON")
    parser.add_argument("--rows", type=Path, help="file for the result rows")
    parser.add_argument("--save", required=True)
    a = parser.parse_args()
    options = {name: json.loads(value) for name, value in (word.split("=", 1) for word in a.set)}
    if a.editor in ("ROME", "RROME"):
        options.setdefault("contexts", ContextConfig([[5, a.contexts], [10, a.contexts]]))
    editor = getattr(methods, a.editor)(lm=LMConfig(a.model), regime="single", seed=0, **options)
    data = RobustQueries(
        a.data,
        known=a.known,
        limit=a.records,
        skip=a.skip,
        probe_kinds=KINDS,
        queries=QueryConfig(corpus=a.corpus),
    )
    path = a.rows or Path("runs") / f"{a.save}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with quiet_lightning():
        trainer = Trainer(
            accelerator="auto",
            devices=1,
            max_epochs=-1,
            callbacks=[Arms(a.arms, path)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
        )
        trainer.fit(editor, datamodule=data)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = figures(rows)
    for line in lines:
        print(f"{line['when']:18s}{line['kind']:18s}{line['after']:7.1f} [{line['ci_low']:.1f}, {line['ci_high']:.1f}]")
    settings = {key: value for key, value in vars(a).items() if key not in ("rows", "save", "data", "corpus")}
    files = {"data": Path(a.data).name, "corpus": Path(a.corpus).name}
    save(
        a.save,
        settings
        | files
        | {
            "protocol": "single regime, teacher-forced exact match, after each edit",
            "method": editor.describe(),
            "data_set": data.describe(),
            "figures": lines,
            "difference_to_editor": differences(rows),
        },
    )


if __name__ == "__main__":
    main()
