"""The record files that some sweeps read: what is joined, left out and pooled is read again as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kedit.data import read_records, read_robust, read_zsre
from kedit.request import EditRecord
from tests.support.paths import FIXTURES, ROOT

SCRIPT = ROOT / "benchmarks" / "paper_tables" / "records.py"


def run(*words: str | Path) -> str:
    done = subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def probes(records: Sequence[EditRecord], kind: str) -> dict[str, list[tuple[str, str, str | None]]]:
    return {r.request.case_id: [(p.text, p.answer, p.rival) for p in r.probes if p.kind == kind] for r in records}


def test_joined(tmp_path: Path) -> None:
    """Requests and neighbours stay; paraphrases come from the other file, by the prompt's text."""
    first, second, *_ = records = read_robust(str(FIXTURES / "robust.json"))
    zsre = [{"prompt": first.request.text, "paraphrase_prompts": "Other words?", "target_new": "x", "ground_truth": "y",
             "locality_prompt": "l", "locality_ground_truth": "m", "case_id": 0}]  # fmt: skip
    (tmp_path / "zsre.json").write_text(json.dumps(zsre))
    out = tmp_path / "deep" / "records.jsonl"
    words = ["joined", "--data", FIXTURES / "robust.json", "--paraphrases", tmp_path / "zsre.json", "--out", out]
    assert run(*words) == f"{len(records)} records: {out}\n"
    found = read_records(out)
    assert [(r.request.case_id, r.request.text, r.request.target_new) for r in found] == [
        (r.request.case_id, r.request.text, r.request.target_new) for r in records
    ]
    assert probes(found, "neighborhood") == probes(records, "neighborhood")
    own, others = probes(records, "paraphrase"), probes(found, "paraphrase")
    new = ("Other words?", first.request.target_new, first.request.target_true)
    assert others[first.request.case_id] == [*own[first.request.case_id], new]
    assert others[second.request.case_id] == own[second.request.case_id]


def test_without(tmp_path: Path) -> None:
    """A file as it is, but for the prompts that another has."""
    taken = read_robust(str(FIXTURES / "robust.json"))[0].request.text
    items: list[dict[str, Any]] = json.loads((FIXTURES / "zsre.json").read_text())
    kept = [item for item in items if "prompt" in item]
    (tmp_path / "zsre.json").write_text(json.dumps([{**kept[0], "prompt": taken}, *kept]))
    out = tmp_path / "rest.json"
    run("without", "--data", tmp_path / "zsre.json", "--exclude", FIXTURES / "robust.json", "--out", out)
    assert json.loads(out.read_text()) == kept
    left = [record.request.text for record in read_zsre(tmp_path / "zsre.json") if record.request.text != taken]
    assert [record.request.text for record in read_zsre(out)] == left


def test_pooled(tmp_path: Path) -> None:
    """Five neighbours more, of the same template and true object; excluded subjects and small groups are left out."""
    items = [
        {"case_id": i, "prompt": f"{name} lies in", "subject": name, "target_new": "Rome", "ground_truth": "Paris",
         "locality_prompt": "The Louvre lies in", "locality_ground_truth": "Paris"}
        for i, name in enumerate(["A", "B", "C", "D", "E", "F", "G"])
    ]  # fmt: skip
    alone = items[0] | {"case_id": 9, "prompt": "H speaks", "subject": "H"}
    (tmp_path / "flat.json").write_text(json.dumps([*items, alone]))
    out = tmp_path / "pooled.jsonl"
    run("pooled", "--data", tmp_path / "flat.json", "--records", "4", "--out", out)
    found = read_records(out)
    assert len(found) == 4
    for record in found:
        own = record.request.subject
        texts = [text for text, answer, rival in probes([record], "neighborhood")[record.request.case_id]]
        assert texts[0] == "The Louvre lies in"
        assert len(set(texts)) == 6
        assert set(texts[1:]) <= {f"{name} lies in" for name in "ABCDEFG" if name != own}
        assert record.request.case_id.startswith("cf-")
