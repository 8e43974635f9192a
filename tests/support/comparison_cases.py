"""Run folders written by hand for the tests of `kedit compare`: result rows of made-up scores, and their summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kedit.cli import main
from kedit.results.summary import summarise

PROTOCOL = {"regime": "single", "measured": "after its own edit"}
KINDS = {"rewrite": "token_accuracy", "paraphrase": "token_accuracy", "neighborhood": "unchanged_tokens"}


def random_row(case: int, random: np.random.Generator, measured_at: str = "edit") -> dict[str, Any]:
    """A record with a paraphrase, or with two, and a neighbour that record 0 lacks."""

    def probe(kind: str) -> dict[str, Any]:
        before, after = (random.integers(0, 3, 4).tolist() for _ in range(2))

        def score(top1: list[int]) -> dict[str, Any]:
            accuracy, success, exact = float(random.random()), bool(random.random() < 0.7), bool(random.random() < 0.5)
            said = {"success": success, "exact": exact, "token_accuracy": accuracy}
            return {"top1": top1, "nll_answer": 1.0, "nll_rival": 2.0, **said}

        return {"kind": kind, "before": score(before), "after": score(after)}

    kinds = ["rewrite", *["paraphrase"] * (1 + case % 2), *["neighborhood"] * (case > 0)]
    row = {"case_id": str(case), "measured_at": measured_at, "protocol": PROTOCOL, "status": "edited", "batch": 0}
    return row | {"edit": {"steps": int(random.integers(5, 20))}, "probes": [probe(kind) for kind in kinds]}


def write_run(
    folder: Path, rows: Sequence[dict[str, Any]], seed: int = 0, records: str = "0123456789abcdef", **method: Any
) -> Path:
    """A finished run's folder.

    Args:
        folder: It.
        rows: Its result rows.
        seed: The method's seed.
        records: Fingerprint of its data.
        method: Other settings of the method; `regime` is the protocol's too.
    """
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    regime = method.get("regime", "single")
    protocol = PROTOCOL | {"regime": regime, "scorer": "s", "scoring": {"generate": []}, "fast_dev_run": False}
    summary = {
        "protocol": protocol,
        "method": {"method": "ROME", "model": "tiny", "seed": seed, "regime": regime} | method,
        "data": {"name": "facts/test", "fingerprint": records, "records": len(rows)},
        "provenance": {"commit": "abc"},
        "failed": {},
        "results": {at: summarise(rows, at) for at in dict.fromkeys(row["measured_at"] for row in rows)},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def by_hand(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Token efficacy, generality, locality and their mean, in percent: means over records of means over probes."""
    columns: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for row in rows:
        for kind, column in columns.items():
            shares = []
            for probe in row["probes"]:
                before, after = probe["before"]["top1"], probe["after"]["top1"]
                same = sum(b == a for b, a in zip(before, after, strict=True)) / 4
                if probe["kind"] == kind:
                    shares.append(same if kind == "neighborhood" else probe["after"]["token_accuracy"])
            if shares:
                column.append(100 * sum(shares) / len(shares))
    means = [sum(column) / len(column) for column in columns.values()]
    return [*means, sum(means) / 3]


def refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and one or two lines."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert len(error.splitlines()) <= 2
