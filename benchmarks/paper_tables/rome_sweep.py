"""Choose ROME's layer and hyperparameters for a model on validation records, and write down every row.

    python benchmarks/paper_tables/rome_sweep.py --data ../shared/data/counterfact_edit.json \\
        --exclude ../shared/data/rep_counterfact_valid.json ../shared/data/rep_counterfact_test.json

Single regime, the same records for every setting. v* is optimised once per setting and solved for as ROME and as
R-ROME do. Records whose subject occurs in an excluded file are left out. The flat file gives one neighbour a
record; others are pooled from records of the same template and true object (ours: never comparable with published
neighbourhood scores).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import save
from kedit.covariance import Covariance, StatsConfig, covariances
from kedit.data import read_counterfact, read_records, read_robust
from kedit.delta.delta import Delta, Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.evaluation.score import EvalConfig, score
from kedit.keyvalue import NLL, KLDivergence, ValueObjective, ValueOptimization, WeightDecay, solvers
from kedit.keyvalue.contexts import ContextConfig, context_templates
from kedit.keyvalue.optimization import optimise
from kedit.model.architecture import weight
from kedit.model.lm import LM, LMConfig, load_lm
from kedit.request import EditRecord

KINDS = ("rewrite", "paraphrase", "neighborhood")


@dataclass(frozen=True)
class Setting:
    """One row of the sweep; the defaults are the published values of 7B Llama models."""

    layer: int = 5
    lr: float = 0.5
    steps: int = 25
    kl: float = 0.0625
    stop: float = 0.05
    clamp: float = 4.0
    weight_decay: float = 1e-3
    bare_weight: float | None = None


SETTINGS = (
    Setting(),
    Setting(layer=3),
    Setting(layer=4),
    Setting(layer=6),
    Setting(lr=0.1),
    Setting(lr=0.2),
    Setting(lr=0.25, steps=60),
    Setting(steps=50, kl=0.01),
    Setting(lr=0.25, steps=50, kl=0.02),
    Setting(lr=0.25, steps=50, kl=0.02, bare_weight=0.3),
    Setting(lr=0.25, steps=50, kl=0.02, bare_weight=0.5),
)


def pooled(records: list[EditRecord], excluded: set[str], n: int, seed: int) -> list[dict[str, Any]]:
    """`n` records with up to six neighbours each, as kedit's own JSONL form."""
    same: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for record in records:
        same[record.request.prompt, record.request.target_true].append(record.request.named())
    chosen = []
    order = list(records)
    random.Random(seed).shuffle(order)
    for record in order:
        r = record.request
        others = [s for s in same[r.prompt, r.target_true] if s != r.subject]
        if r.subject in excluded or len(others) < 5:
            continue
        own = [p.text for p in record.probes if p.kind == "neighborhood"]
        others = random.Random(f"{seed}-{r.case_id}").sample(others, 5)
        chosen.append(
            {
                "case_id": f"cf-{r.case_id}",
                "prompt": r.prompt,
                "subject": r.subject,
                "target_new": r.target_new,
                "target_true": r.target_true,
                "paraphrases": [p.text for p in record.probes if p.kind == "paraphrase"],
                "neighbors": own + [r.prompt.replace("{}", other) for other in others],
            }
        )
        if len(chosen) == n:
            break
    return chosen


def values(
    lm: LM, records: list[EditRecord], contexts: list[str], s: Setting, lanes: int
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Keys, values and v* of every record: `[n_contexts, d_in]`, `[n_contexts, d_model]`, `[d_model]`, float64."""
    found = {}
    order = sorted(records, key=lambda r: len(r.request.text))
    for start in range(0, len(order), lanes):
        part = order[start : start + lanes]
        terms = [NLL(), KLDivergence(s.kl), WeightDecay(s.weight_decay)]
        objective = ValueObjective(lm, [r.request for r in part], contexts, s.layer, "mlp", terms, s.bare_weight)
        v_star = optimise(ValueOptimization(objective, s.stop, s.clamp), s.lr, s.steps).double()
        keys, outputs = (t.double() for t in objective.keys_and_values())
        found |= {r.request.case_id: (keys[i], outputs[i], v_star[i]) for i, r in enumerate(part)}
    return found


def measure(
    lm: LM, records: list[EditRecord], found: dict[str, Any], cov: Covariance, layer: int, method: str
) -> dict[str, float]:
    """The row of one method, in percent."""
    path = lm.arch.path("mlp_out", layer)
    norm = float(weight(lm.arch.module(lm.model, "mlp_out", layer)).float().norm())
    deltas = []
    for record in records:
        keys, outputs, v_star = found[record.request.case_id]
        u = cov.solve(keys.mean(0))
        if method == "ROME":
            f = solvers.rome(keys[0], outputs[0], v_star, u)
        else:
            f = solvers.r_rome(keys.mean(0), outputs.mean(0), v_star, u)
        deltas.append(Delta({path: Factors(f.left.float(), f.right.float())}))
    probes = [[p for p in r.probes if p.kind in KINDS] for r in records]
    flat = [p for own in probes for p in own]
    lanes = [i for i, own in enumerate(probes) for _ in own]
    config = EvalConfig(generate=[])
    before = score(lm, flat, config=config)
    after = score(lm, flat, lanes, BatchedDeltas(lm.model, deltas), config)
    hits: dict[str, list[float]] = defaultdict(list)
    for p, b, a in zip(flat, before, after, strict=True):
        if p.kind == "neighborhood":
            hits["neighborhood_unchanged"].append(b.top1 == a.top1)
        else:
            hits[f"{p.kind}_exact"].append(a.exact)
            hits[f"{p.kind}_success"].append(bool(a.success))
    ratio = sorted(delta.norm() / norm for delta in deltas)
    row = {name: round(100 * sum(values) / len(values), 2) for name, values in hits.items()}
    return row | {"delta_over_weight_median": round(ratio[len(ratio) // 2], 4)}


def main() -> None:
    """Run the settings and save a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--exclude", type=Path, nargs="*", default=[])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--contexts", type=int, default=5, help="of each length; 10 is the published number")
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", default="rome_sweep", help="name of the figures under benchmarks/results")
    a = parser.parse_args()
    excluded = {record.request.named() for path in a.exclude for record in read_robust(str(path))}
    chosen = pooled(read_counterfact(str(a.data)), excluded, a.records, a.seed)
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / "records.jsonl"
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in chosen), encoding="utf-8")
        records = read_records(str(path))
    lm = load_lm(LMConfig(a.model), device="cuda" if torch.cuda.is_available() else "cpu")
    lm.model.eval().requires_grad_(False)
    contexts = context_templates(lm, ContextConfig(lengths=[[5, a.contexts], [10, a.contexts]]))
    rows = []
    for setting in SETTINGS:
        cov = covariances(lm, [setting.layer], StatsConfig())[setting.layer]
        start = time.process_time()
        found = values(lm, records, contexts, setting, a.lanes)
        seconds = round((time.process_time() - start) / len(records), 2)
        for method in ("ROME", "RROME"):
            row = measure(lm, records, found, cov, setting.layer, method)
            rows.append({"method": method, **vars(setting), **row, "cpu_seconds_per_v": seconds})
            print(json.dumps(rows[-1]), flush=True)
        about = {"model": a.model, "records": len(records), "contexts": len(contexts), "seed": a.seed}
        save(a.save, about | {"data": a.data.name, "protocol": "single regime, after each edit", "rows": rows})


if __name__ == "__main__":
    main()
