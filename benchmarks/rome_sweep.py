"""Choose ROME's layer and hyperparameters for a model on validation records, and write down every row.

    python benchmarks/rome_sweep.py --data ../shared/data/counterfact_edit.json \\
        --exclude ../shared/data/rep_counterfact_valid.json ../shared/data/rep_counterfact_test.json

Each setting is one `kedit fit` in the single regime, on the same records. Records whose subject occurs in an excluded
file are left out. The flat file gives one neighbour a record; others are pooled from records of the same
template and true object (ours: never comparable with published neighbourhood scores).
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import ROOT, save

from kedit.cli import main as kedit
from kedit.data import read_counterfact, read_robust
from kedit.requests import EditRecord

BASE: dict[str, Any] = {"layer": 5, "stop_loss": 0.05, "contexts": {"lengths": [[5, 5], [10, 5]]}}
# one row each: what differs from BASE
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"layer": 3},
    {"layer": 4},
    {"layer": 6},
    {"layer": 8},
    {"layer": 11},
    {"v_num_grad_steps": 50},
    {"clamp_norm_factor": 2.0},
    {"clamp_norm_factor": 8.0},
    {"v_lr": 0.25, "v_num_grad_steps": 50},
    {"kl_factor": 0.02},
    {"kl_factor": 0.25},
    {"stop_loss": 0.1},
    {"stats": {"ridge": 0.01}},
    {"stats": {"ridge": 0.1}},
    {"mom2_adjustment": False},
)


def pooled(records: list[EditRecord], excluded: set[str], n: int, seed: int) -> list[dict[str, Any]]:
    """`n` records with up to six neighbours each, as kedit's own JSONL form."""
    same: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for record in records:
        same[record.request.prompt, record.request.target_true].append(record.request.subject)
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


def run(path: Path, root: Path, method: str, model: str, setting: dict[str, Any]) -> dict[str, Any]:
    """One `kedit fit`; its summary."""
    words = [f"--model.init_args.{key}={json.dumps(value)}" for key, value in (BASE | setting).items()]
    name = "-".join(f"{key}{value}" for key, value in setting.items()) or "base"
    name = re.sub(r"[^\w.-]", "", name)
    kedit(
        ["fit", "--model", method, f"--model.init_args.lm.name={model}", *words, "--data", "Records",
         f"--data.init_args.path={path}", f"--run.root={root}", f"--run.name={method}-{name}",
         "--results.save_deltas=false"]
    )  # fmt: skip
    return json.loads((root / f"{method}-{name}" / "summary.json").read_text(encoding="utf-8"))


def figures_of(summary: dict[str, Any]) -> dict[str, float]:
    """The row of one run, in percent (and seconds)."""
    r = summary["results"]["edit"]
    return {
        "efficacy_success": r["rewrite"]["success"]["after"],
        "efficacy_exact": r["rewrite"]["exact"]["after"],
        "generated": r["rewrite"]["generated"]["after"],
        "paraphrase_success": r["paraphrase"]["success"]["after"],
        "paraphrase_exact": r["paraphrase"]["exact"]["after"],
        "neighborhood_unchanged": r["neighborhood"]["unchanged"]["after"],
        "neighborhood_success": r["neighborhood"]["success"]["after"],
        "score": r["score"]["success"]["after"],
        "seconds_editing": summary["timing"]["seconds_editing"],
    }


def main() -> None:
    """Run the settings and save a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--exclude", type=Path, nargs="*", default=[])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--method", default="ROME")
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--root", type=Path, default=Path("runs/sweep"), help="where the runs go")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every N-th setting from the I-th"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", help="name of the figures under benchmarks/results")
    a = parser.parse_args()
    excluded = {record.request.subject for path in a.exclude for record in read_robust(str(path))}
    records = pooled(read_counterfact(str(a.data)), excluded, a.records, a.seed)
    part, parts = a.part
    a.root.mkdir(parents=True, exist_ok=True)
    path = a.root / f"records{part}.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    rows = []
    for setting in SETTINGS[part::parts]:
        summary = run(path, a.root, a.method, a.model, setting)
        rows.append(setting | figures_of(summary))
        print(json.dumps(rows[-1]), flush=True)
        save(
            a.save or f"{a.method.lower()}_sweep",
            {
                "model": a.model,
                "method": a.method,
                "records": len(records),
                "seed": a.seed,
                "data": a.data.name,
                "base": BASE,
                "protocol": summary["protocol"],
                "rows": rows,
            },
        )
    print("saved under", (ROOT / "benchmarks" / "results").name)


if __name__ == "__main__":
    main()
