"""The record files that sweeps of the docs' tables read, where no file has them as they are.

    python benchmarks/paper_tables/records.py joined --data ../shared/data/rep_zsre_test.json \\
        --paraphrases ../shared/data/zsre_edit.json --out runs/records/zsre_test.jsonl
    python benchmarks/paper_tables/records.py without --data ../shared/data/zsre_edit.json \\
        --exclude ../shared/data/rep_zsre_test.json --out runs/records/zsre_valid.json
    python benchmarks/paper_tables/records.py pooled --data ../shared/data/counterfact_edit.json \\
        --exclude ../shared/data/rep_counterfact_valid.json ../shared/data/rep_counterfact_test.json \\
        --out runs/records/counterfact_pooled.jsonl

joined: the records of a robust-query file, with the paraphrases that a ZsRE file has of the same prompts, in kedit's
form. without: a ZsRE file as it is, but for the prompts that are in robust-query files. pooled: records of CounterFact
whose subjects occur in no excluded file, in kedit's form; the flat file gives one neighbour a record, five more are
pooled from records of the same template and true object (ours: never comparable with published neighbourhood scores).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from kedit.data import read_counterfact, read_robust, read_zsre
from kedit.request import EditRecord, Probe


def joined(records: Sequence[EditRecord], others: Sequence[EditRecord]) -> list[EditRecord]:
    """The records, each with the paraphrases that another has of the same prompt."""
    more = {r.request.text: [p.text for p in r.probes if p.kind == "paraphrase"] for r in others}
    found = []
    for record in records:
        r = record.request
        probes = [Probe("paraphrase", text, r.target_new, r.target_true) for text in more.get(r.text, ())]
        found.append(replace(record, probes=(*record.probes, *probes)))
    return found


def pooled(records: Sequence[EditRecord], excluded: set[str], n: int, seed: int) -> list[EditRecord]:
    """`n` records with five more neighbours each: other subjects of the same template and true object."""
    same: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for record in records:
        same[record.request.prompt, record.request.target_true].append(record.request.named())
    chosen = []
    order = list(records)
    random.Random(seed).shuffle(order)
    for record in order:
        r = record.request
        others = [s for s in same[r.prompt, r.target_true] if s != r.subject]
        if r.subject in excluded or len(others) < 5 or r.target_true is None:
            continue
        texts = [r.prompt.replace("{}", other) for other in random.Random(f"{seed}-{r.case_id}").sample(others, 5)]
        probes = [Probe("neighborhood", text, r.target_true, r.target_new) for text in texts]
        chosen.append(replace(record, request=replace(r, case_id=f"cf-{r.case_id}"), probes=(*record.probes, *probes)))
        if len(chosen) == n:
            break
    return chosen


def as_row(record: EditRecord) -> dict[str, Any]:
    """A record in kedit's own form: its request, paraphrases and neighbours."""
    r = record.request
    of = {kind: [p for p in record.probes if p.kind == kind] for kind in ("paraphrase", "neighborhood")}
    row = {"case_id": r.case_id, "prompt": r.prompt, "subject": r.subject, "target_new": r.target_new}
    row |= {} if r.target_true is None else {"target_true": r.target_true}
    row |= {"paraphrases": [p.text for p in of["paraphrase"]]}
    row |= {"neighbors": [{"prompt": p.text, "answer": p.answer} for p in of["neighborhood"]]}
    return {key: value for key, value in row.items() if value is not None}


def main() -> None:
    """Write a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["joined", "without", "pooled"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--paraphrases", type=Path, help="joined: the ZsRE file that has them")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[], help="robust-query files")
    parser.add_argument("--records", type=int, default=32, help="pooled: how many")
    parser.add_argument("--seed", type=int, default=0, help="pooled: of the choice")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    excluded = [record.request for path in a.exclude for record in read_robust(str(path))]
    a.out.parent.mkdir(parents=True, exist_ok=True)
    if a.kind == "without":
        prompts = {request.text for request in excluded}
        items = [item for item in json.loads(a.data.read_text(encoding="utf-8")) if item["prompt"] not in prompts]
        a.out.write_text(json.dumps(items, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print(f"{len(items)} records: {a.out}")
        return
    if a.kind == "joined":
        records = joined(read_robust(str(a.data)), read_zsre(a.paraphrases, clean=False))
    else:
        records = pooled(read_counterfact(str(a.data)), {request.named() for request in excluded}, a.records, a.seed)
    lines = [json.dumps(as_row(record), ensure_ascii=False) + "\n" for record in records]
    a.out.write_text("".join(lines), encoding="utf-8")
    print(f"{len(records)} records: {a.out}")


if __name__ == "__main__":
    main()
