"""PAC, its controls and other editors on one edit set: accuracy, locality, generality after the last edit.

    python benchmarks/paper_tables/pac_table.py --data ../shared/data/rep_zsre_test.json \\
        --paraphrases ../shared/data/zsre_edit.json --records 100 --save pac_zsre_test \\
        --arms default=configs/pac_smollm2.yaml random=configs/pac_smollm2.yaml,trace.node_source=random \\
               rome=configs/rome_smollm2.yaml

An arm is NAME=CONFIG[,OPTION=VALUE...]: the `model` of a config of `kedit fit` with some of its options changed. All
run in the sequential regime over the same records in the same order, the edit batches as large as the config's
`data.batch_size` says, and are measured after the last edit: by the paper's measures (token accuracy; locality as
agreement with the unedited model's argmax; their arithmetic mean) and by kedit's. Arms that the result file has
already of the same records stay in it, and are run again only when they are named.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import ROOT, save
from benchmarks.paper_tables.editing import Listed, arm_of, fit
from kedit.data import read_robust, read_zsre
from kedit.evaluation.score import EvalConfig, ProbeScore, score_records
from kedit.methods import EditingModule
from kedit.methods.base.callback import EditCallback
from kedit.methods.base.edit_batch import EditBatch
from kedit.model.lm import LM
from kedit.request import EditRecord, Probe
from kedit.results.rows import result_row
from kedit.results.summary import TOKEN_COLUMNS, TOKENS, summarise
from kedit.runtime.run_folder import append_rows

Row = dict[str, Any]
KINDS = ("rewrite", "paraphrase", "neighborhood")


class AtEnd(EditCallback):
    """Measures all records before the first edit and after the last, and keeps what the edits said of themselves."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.seconds: list[float] = []
        self.infos: dict[str, Row] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.records = [record for batch in trainer.datamodule.batches for record in batch]
        self.before = self._score(pl_module.lm)

    def on_edit_end(self, trainer: Any, module: EditingModule, batch: EditBatch) -> None:
        self.seconds.append(batch.seconds)
        for outcome in batch.outcomes:
            self.infos[outcome.record.request.case_id] = outcome.info | {"error": outcome.error}
        print(f"  {len(self.infos)} edits, {sum(self.seconds):.0f} s", end="\r", flush=True)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        found = zip(self.records, self.before, self._score(pl_module.lm), strict=True)
        self.rows = [
            result_row(record, b, a, i, "end") | {"edit": self.infos[record.request.case_id]}
            for i, (record, b, a) in enumerate(found)
        ]

    def _score(self, lm: LM) -> list[list[ProbeScore]]:
        return score_records(lm, self.records, config=EvalConfig(generate=[]))


def read(path: Path, paraphrases: Path | None, without: Path | None) -> list[EditRecord]:
    """The records of a robust-query or ZsRE file; those without a paraphrase get the one of the same prompt."""
    first = json.loads(path.read_text(encoding="utf-8"))[0]
    records = read_robust(str(path)) if "subject_rephrase" in first else read_zsre(path)
    if without is not None:
        taken = {record.request.text for record in read_robust(str(without))}
        records = [record for record in records if record.request.text not in taken]
    if paraphrases is None:
        return records
    more = {
        r.request.text: [p for p in r.probes if p.kind == "paraphrase"] for r in read_zsre(paraphrases, clean=False)
    }
    found = []
    for record in records:
        others = tuple(
            Probe("paraphrase", p.text, record.request.target_new) for p in more.get(record.request.text, ())
        )
        found.append(replace(record, probes=(*record.probes, *others)))
    return found


def figures(rows: list[Row]) -> dict[str, Any]:
    """The paper's measures and kedit's."""
    found = summarise(rows)
    cells = {f"{kind}/{metric}": found[kind][metric] for kind, metric in TOKEN_COLUMNS}
    cells |= {f"score/{metric}": cell for metric, cell in found["score"].items()}
    cells |= {f"{kind}/{m}": found[kind][m] for kind in KINDS for m in ("exact", "success") if m in found[kind]}
    return {name: {key: cell[key] for key in ("before", "after", "ci")} for name, cell in cells.items()}


def main() -> None:
    """Run every arm, print its line, and add it to the result file."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--arms", nargs="+", required=True)
    options.add_argument("--data", type=Path, required=True, help="a robust-query file, or ZsRE")
    options.add_argument("--paraphrases", type=Path, help="a ZsRE file that has them, by prompt")
    options.add_argument("--without", type=Path, help="leave out the records whose prompts are in this file")
    options.add_argument("--records", type=int, default=100)
    options.add_argument("--skip", type=int, default=0)
    options.add_argument("--max-probes", type=int, default=2, help="probes of each kind in a record")
    options.add_argument("--rows", type=Path, help="folder for result rows; runs without it")
    options.add_argument("--save", required=True, help="name of the figures under benchmarks/results")
    a = options.parse_args()
    records = read(a.data, a.paraphrases, a.without)
    path = ROOT / "benchmarks" / "results" / f"{a.save}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for arm in a.arms:
        name, module, size, spec = arm_of(arm, "sequential")
        data = Listed(
            a.data.stem, records, KINDS, limit=a.records, skip=a.skip, max_probes=a.max_probes, batch_size=size
        )
        watch, clock = AtEnd(), time.process_time()
        fit(module, data, watch)
        rows_path = (a.rows or Path("runs")) / f"{a.save}.{name}.jsonl"
        rows_path.parent.mkdir(parents=True, exist_ok=True)
        rows_path.unlink(missing_ok=True)
        append_rows(rows_path, watch.rows)
        cells = figures(watch.rows)
        infos = list(watch.infos.values())
        steps = [info["steps"] for info in infos if info.get("steps") is not None]
        if kept.get("data_fingerprint") != data.fingerprint:
            kept = {"data_fingerprint": data.fingerprint, "arms": {}}
        kept["arms"][name] = {
            "spec": spec,
            "method": {k: v for k, v in module.describe().items() if k != "contexts"},
            "edit_batch": size,
            "figures": cells,
            "failed": sum(info["error"] is not None for info in infos),
            "steps_mean": sum(steps) / len(steps) if steps else None,
            "seconds_per_edit": sum(watch.seconds) / len(infos),
            "cpu_seconds": time.process_time() - clock,
            "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        line = [f"{cells[f'{kind}/{metric}']['after']:6.1f}" for kind, metric in TOKEN_COLUMNS]
        total = cells[f"score/{TOKENS}"]
        print(
            f"{name:24s} E, G, L:{''.join(line)}  score {total['after']:.1f} [{total['ci'][0]:.1f}, "
            f"{total['ci'][1]:.1f}]  {kept['arms'][name]['seconds_per_edit']:.2f} s/edit, "
            f"{kept['arms'][name]['steps_mean'] or 0:.1f} steps",
            flush=True,
        )
        protocol = (
            "sequential regime in edit batches of `edit_batch`, nothing rolled back; measured after the last edit; "
            "teacher-forced token accuracy (rewrite, paraphrase), agreement with the unedited argmax (neighborhood)"
        )
        about = {"records": len(infos), "skip": a.skip, "max_probes": a.max_probes, "data": a.data.name}
        save(a.save, about | {"protocol": protocol} | kept)


if __name__ == "__main__":
    main()
