"""STEAM beside its editor, and its sweeps: every record edited once, on the unedited model (single regime).

    python benchmarks/steam_table.py --data facts:test --records 100 --save steam_facts_test \\
        --arms rome=configs/rome_smollm2.yaml rome_steam=configs/steam_rome_smollm2.yaml
    python benchmarks/steam_table.py --data ../shared/data/rep_counterfact_test.json --records 100 \\
        --references ../shared/data/counterfact_edit.json --save steam_counterfact_test --arms ...

An arm is NAME=CONFIG[,OPTION=VALUE...], as in pac_table.py. All arms share records, probes, contexts and anchors; the
cosines of every arm, the editor's included, are taken to these. The first arm of a call is what its others are compared
with, record by record. Arms that the result file has already of the same records stay in it
(docs/experiments/steam_smollm2.md).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import ROOT, save
from editing import Listed, arm_of, fit

from kedit.analysis.hidden_states import BASE, arm_states, prompts_of
from kedit.data import read_facts, read_robust
from kedit.delta.delta import Delta
from kedit.delta.lanes import BatchedDeltas
from kedit.evaluation.consistency import collection, references_of
from kedit.evaluation.fluency import ngram_entropy, sampled_texts
from kedit.evaluation.score import EvalConfig, score_records
from kedit.evaluation.tfidf import Tfidf
from kedit.methods import STEAM, EditingModule
from kedit.methods.base.callback import EditCallback
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.steam import AnchorBank, AnchorConfig
from kedit.methods.steam.module import pool_of
from kedit.model.lm import LM
from kedit.request import EditRecord
from kedit.results.intervals import paired, paired_cell
from kedit.results.rows import result_row
from kedit.results.summary import summarise
from kedit.runtime.run_folder import append_rows, read_rows

Row = dict[str, Any]
KINDS = ("rewrite", "paraphrase", "neighborhood", "portability")
SHOWN = (
    ("rewrite", "success"),
    ("rewrite", "exact"),
    ("paraphrase", "success"),
    ("paraphrase", "exact"),
    ("neighborhood", "success"),
    ("neighborhood", "unchanged"),
    ("portability", "port_acc"),
    ("portability", "port_em"),
    ("portability", "port_ll"),
)
TEXTS = ("fluency", "consistency")
SUFFIX = "The answer to this question, most simply, is"  # of port_em, as a public evaluator has it


class Measure(EditCallback):
    """Scores every record under its own edit, and how near its states are to its anchor."""

    def __init__(self, anchors: AnchorConfig, path: Path) -> None:
        self.anchors, self.path = anchors, path
        self.config = EvalConfig(generate=["portability"], port_suffix=SUFFIX)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule
        records = [record for batch in data.batches for record in batch]
        editor = pl_module.editor if isinstance(pl_module, STEAM) else pl_module
        pool = data.everything
        self.bank = AnchorBank(pl_module.lm, records, pool_of(pool, self.anchors), self.anchors, editor.contexts)
        self.bank.fill()
        self.tfidf = Tfidf.fit(collection(pool))
        self.references = {record.request.case_id: " ".join(references_of(record, pool)) for record in records}

    def on_edit_end(self, trainer: Any, module: EditingModule, batch: EditBatch) -> None:
        n, records = len(batch.records), batch.records
        deltas = [delta or Delta() for delta in batch.deltas]
        bank = BatchedDeltas(module.lm.model, deltas)
        lanes = [*[-1] * n, *range(n)]
        scores = score_records(module.lm, records * 2, lanes, bank, self.config)
        cosines = self._cosines(module.lm, records, deltas)
        prompts = [record.request.text.strip() for record in records]
        texts = sampled_texts(module.lm, prompts * 2, [record.request.case_id for record in records] * 2, lanes, bank)
        rows = []
        for i, outcome in enumerate(batch.outcomes):
            more: Row = {"edit": outcome.info, "error": outcome.error, "seconds": batch.seconds / n}
            more |= {"cosine": {side: of_records[i] for side, of_records in cosines.items()}}
            more |= {"source": self.bank.anchor(outcome.record).source}
            case = outcome.record.request.case_id
            more |= {"texts": {"before": self._text(case, texts[i]), "after": self._text(case, texts[n + i])}}
            rows.append(result_row(outcome.record, scores[i], scores[n + i], batch.index, "edit", **more))
        append_rows(self.path, rows)
        print(f"  {batch.index + 1} of {len(trainer.datamodule.batches)} batches", end="\r", flush=True)

    def _text(self, case: str, text: str | None) -> dict[str, float | None]:
        """Bits, and percent."""
        if text is None:
            return {"fluency": None, "consistency": None}
        references = self.references[case]
        return {"fluency": ngram_entropy(text),
                "consistency": 100 * self.tfidf.cosine(text, references) if references else None}  # fmt: skip

    def _cosines(self, lm: LM, records: Sequence[EditRecord], deltas: Sequence[Delta]) -> dict[str, list[list[float]]]:
        """Cosine of the state where the bare prompt's answer is predicted to the anchor, at every layer."""
        prompts = [list(prompts_of(lm, record, paraphrases=False).values()) for record in records]
        found = arm_states(lm, prompts, {"edited": deltas})
        nothing = torch.full(found[BASE].shape[1:], float("nan"))
        means = [self.bank.anchor(record).mean for record in records]
        anchors = torch.stack([nothing if mean is None else mean for mean in means])
        cosines = {name: F.cosine_similarity(hidden, anchors, dim=-1).tolist() for name, hidden in found.items()}
        rounded = {name: [[round(x, 6) for x in row] for row in rows] for name, rows in cosines.items()}
        return {"before": rounded[BASE], "after": rounded["edited"]}


def read(data: str) -> list[EditRecord]:
    """`facts:SPLIT` or a robust-query file."""
    return read_facts(data.removeprefix("facts:")) if data.startswith("facts:") else read_robust(data)


def shares(row: Row) -> dict[tuple[str, str], float]:
    """A record's mean over its probes of each kind, after the edit; a kind that it has no probe of is left out."""
    found = summarise([row], resamples=1)
    cells = {(kind, metric): found.get(kind, {}).get(metric) for kind, metric in SHOWN}
    return {key: cell["after"] / 100 for key, cell in cells.items() if cell is not None and cell["after"] is not None}


def text_cell(pairs: Iterable[tuple[float | None, float | None]]) -> Row | None:
    """`paired_cell` of the pairs that have both; None where there is none."""
    both = [(x, y) for x, y in pairs if x is not None and y is not None]
    return paired_cell(both) if both else None


def aligned(row: Row, layers: Sequence[int], side: str) -> float:
    """Mean cosine over the aligned layers."""
    return sum(row["cosine"][side][layer] for layer in layers) / len(layers)


def compared(rows: list[Row], with_: list[Row], layers: Sequence[int]) -> Row:
    """Differences to the first arm, paired by record: mean and 95 % interval, and how often the cosine rises."""
    by_case = {row["case_id"]: row for row in with_}
    pairs = [(by_case[row["case_id"]], row) for row in rows if row["case_id"] in by_case]
    found: Row = {}
    measured = [(shares(a), shares(b)) for a, b in pairs]
    for key in SHOWN:
        values = [(a[key], b[key]) for a, b in measured if key in a and key in b]
        if values:
            before, after = zip(*values, strict=True)
            low, high = paired(before, after)
            change = (sum(after) - sum(before)) / len(values)
            found["/".join(key)] = {"change": 100 * change, "ci": [100 * low, 100 * high], "n": len(values)}
    for name in TEXTS:
        cell = text_cell((a["texts"]["after"][name], b["texts"]["after"][name]) for a, b in pairs)
        if cell:
            found[name] = {"change": cell["change"], "ci": cell["change_ci"], "n": cell["n_records"]}
    if layers:
        sides = [
            (aligned(a, layers, "before"), aligned(a, layers, "after"), aligned(b, layers, "after")) for a, b in pairs
        ]
        sides = [x for x in sides if x[0] == x[0]]
        found["cosine"] = {
            "unedited": sum(x[0] for x in sides) / len(sides),
            "first_arm": sum(x[1] for x in sides) / len(sides),
            "this_arm": sum(x[2] for x in sides) / len(sides),
            "above_first_arm_percent": 100 * sum(x[2] > x[1] for x in sides) / len(sides),
            "above_unedited_percent": 100 * sum(x[2] > x[0] for x in sides) / len(sides),
            "n": len(sides),
        }
    return found


def main() -> None:
    """Run every arm, print its line, and add it to the result file."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--arms", nargs="+", required=True)
    options.add_argument("--data", required=True, help="facts:SPLIT, or a robust-query file")
    options.add_argument("--known", action="store_true", help="only facts that the model gives itself")
    options.add_argument("--references", nargs="*", default=[], help="further files of records for the anchors")
    options.add_argument("--records", type=int, default=100)
    options.add_argument("--skip", type=int, default=0)
    options.add_argument("--max-probes", type=int, help="probes of each kind in a record")
    options.add_argument("--rows", type=Path, default=Path("runs"), help="folder for result rows")
    options.add_argument("--save", required=True, help="name of the figures under benchmarks/results")
    a = options.parse_args()
    records, anchors = read(a.data), AnchorConfig(records=a.references)
    kinds = [kind for kind in KINDS if any(probe.kind == kind for record in records for probe in record.probes)]
    path = ROOT / "benchmarks" / "results" / f"{a.save}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    a.rows.mkdir(parents=True, exist_ok=True)
    first: list[Row] | None = None
    for arm in a.arms:
        name, module, _, spec = arm_of(arm, "single")
        if isinstance(module, STEAM):
            module.anchor_config = anchors
        cut = {"limit": a.records, "skip": a.skip, "max_probes": a.max_probes, "known": a.known}
        data = Listed(Path(a.data).stem, records, kinds, **cut)
        rows_path = a.rows / f"{a.save}.{name}.jsonl"
        rows = list(read_rows(rows_path))
        describe: Row = {}
        if len(rows) < a.records or name not in kept.get("arms", {}):
            rows_path.unlink(missing_ok=True)
            fit(module, data, Measure(anchors, rows_path))
            rows = list(read_rows(rows_path))
            describe = {k: v for k, v in module.describe().items() if k != "contexts"}
        first = rows if first is None else first
        if kept.get("records") != [row["case_id"] for row in rows]:
            kept = {"records": [row["case_id"] for row in rows], "arms": {}}
        found = summarise(rows)
        old = kept["arms"].get(name, {})
        kept["arms"][name] = {
            "spec": spec,
            "first_arm": a.arms[0].partition("=")[0],
            "method": describe or old.get("method"),
            "figures": {
                f"{kind}/{metric}": {key: found[kind][metric][key] for key in ("before", "after", "ci")}
                for kind, metric in SHOWN
                if metric in found.get(kind, {})
            },
            "texts": {
                name: text_cell((row["texts"]["before"][name], row["texts"]["after"][name]) for row in rows)
                for name in TEXTS
            },
            "sources": dict(Counter(row["source"] for row in rows)),
            "failed": sum(row["error"] is not None for row in rows),
            "seconds_per_edit": sum(row["seconds"] for row in rows) / len(rows),
            "steps_mean": sum(row["edit"].get("steps", 0) for row in rows) / len(rows),
            "compared_with_first": compared(rows, first, module.layers if isinstance(module, STEAM) and module.layers
                                            else (old.get("method") or {}).get("aligned_layers") or []),
        }  # fmt: skip
        show(name, kept["arms"][name])
        protocol = "single regime, measured after the record's own edit; teacher forced, generated where named"
        save(a.save, {"data": a.data, "known": a.known, "protocol": protocol} | kept)


def show(name: str, arm: Row) -> None:
    """An arm's line, and its cosines."""
    cells = " ".join(f"{key.replace('token_accuracy', 'acc')} {c['after']:.1f}" for key, c in arm["figures"].items())
    print(f"{name:20s} {cells}  {arm['seconds_per_edit']:.1f} s/edit, {arm['steps_mean']:.1f} steps", flush=True)
    if cosine := arm["compared_with_first"].get("cosine"):
        print(f"{'':20s} cosine { ({k: round(v, 4) for k, v in cosine.items()}) }", flush=True)


if __name__ == "__main__":
    main()
