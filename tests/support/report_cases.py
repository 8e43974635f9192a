"""Runs written by hand for the tests of `kedit report`: made-up scores and texts, hostile ones among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.comparison_cases import PROTOCOL, write_run

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=https://example.org/x onerror=alert(1)><!-- \"'&|_%$\\#"
)
"""A text of a model that means harm."""

RATES = {"rome": 0.9, "memit": 0.8, "ft": 0.95}
WILD = {"rome": 0.5, "memit": 0.8, "ft": 0.1}


def row(case: int, arm: str, random: np.random.Generator, measured_at: str = "edit") -> dict[str, Any]:
    """A record with a rewrite, a paraphrase and a neighbour; record 1 asks for something hostile."""

    def score(rate: float, answer: bool, said: str | None = None) -> dict[str, Any]:
        exact = bool(random.random() < rate)
        top1 = [int(random.integers(5))]
        own = {"nll_answer": float(random.random() * 3) + 0.01, "nll_rival": 1.0, "success": answer, "exact": exact,
               "token_accuracy": float(exact), "top1": top1}  # fmt: skip
        free = {} if said is None else {"wild_generated": said, "wild_match": bool(random.random() < WILD[arm])}
        return own | free

    subject = f"Subject {case}" if case != 1 else HOSTILE
    target = f"Answer{case}"

    def probe(kind: str, text: str, answer: str, said: str | None = None) -> dict[str, Any]:
        before, after = score(0.1, False), score(RATES[arm], bool(random.random() < RATES[arm]), said)
        return {"kind": kind, "text": text, "answer": answer, "rival": "old", "before": before, "after": after}

    return {
        "case_id": f"case-{case}",
        "batch": case,
        "measured_at": measured_at,
        "protocol": PROTOCOL,
        "status": "edited",
        "error": None,
        "request": {"prompt": "{} is in", "subject": subject, "target_new": target, "target_true": "old"},
        "edit": {"steps": 3},
        "probes": [
            probe("rewrite", f"{subject} is in", target, f"{target} says {arm}" if case != 2 else HOSTILE),
            probe("paraphrase", f"One finds {subject} in", target),
            probe("neighborhood", "The neighbour is in", "old"),
        ],
        "perplexity": {"before": 20.0, "after": 20.0 + float(random.random())},
    }


def three_arms(folder: Path, records: int = 12, arms: int = 3) -> list[str]:
    """Finished runs of three methods, and of more by these names, on the same records.

    Args:
        folder: Of the runs.
        records: Of each.
        arms: How many runs.
    """
    names = [*RATES, *(f"{list(RATES)[n % 3]}_{n}" for n in range(3, arms))]
    found = []
    for seed, name in enumerate(names):
        random = np.random.default_rng(seed)
        rows = [row(case, name.partition("_")[0], random) for case in range(records)]
        run = write_run(folder / name, rows)
        lines = [{"case_id": one["case_id"], "batch": n, "seconds": 1.0, "cpu_seconds": 0.5 + seed, "delta_bytes": 2048}
                 for n, one in enumerate(rows)]  # fmt: skip
        (run / "costs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "config.yaml").write_text(
            f"model: {{class_path: {name.upper()}, init_args: {{lr: {seed}, alike: 7}}}}\n"
        )
        found.append(str(run))
    return found


def extra_files(run: Path) -> None:
    """What methods, general ability and a judge write beside the results."""
    (run / "importance.csv").write_text(
        "layer,kind,rank,score\n0,key,1,1.5\n1,key,1,2.5\n0,value,1,0.5\n1,value,1,1.0\n"
    )
    head = "layer,kind,tokens,n_keys,mean_before,mean_after,delivered_before,delivered_after,open\n"
    (run / "similarity.csv").write_text(head + "5,paraphrase_id,subject_last,8,0.25,1.0,0.0,100.0,100.0\n")
    (run / "latent_cosine.csv").write_text(
        "layer,view,arm,mean,se,n\n" + "".join(f"{n},raw,{arm},0.{n}5,,4\n" for arm in ("steam", "own") for n in (0, 1))
    )
    general = {"task": "ours", "metric": "acc", "measured_at": "end", "before": 50.0, "after": 47.25,
               "before_stderr": 1.0, "after_stderr": 1.5, "n": 40}  # fmt: skip
    (run / "general.json").write_text(
        json.dumps({"figures": [general, {"task": "new", "metric": "acc", "after": 1.0}]})
    )
    figure = {"kind": "rewrite", "side": "after", "judged": 62.5, "exact_match": 50.0, "agreement": 75.0, "n": 8}
    (run / "judge.json").write_text(json.dumps({"model": "stub", "prompt": "?", "figures": [figure]}))
    line = {"case_id": "case-3", "measured_at": "edit", "kind": "rewrite", "text": "T is in", "answer": "A",
            "side": "after", "said": HOSTILE, "verdict": "right", "exact_match": False, "why": ""}  # fmt: skip
    others = [line, line | {"exact_match": True}, line | {"verdict": "unclear"}]
    (run / "judge.jsonl").write_text("".join(json.dumps(one) + "\n" for one in others))
