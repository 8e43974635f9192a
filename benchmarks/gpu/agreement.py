"""How far the rows of two runs agree: the same edits on a GPU and on a CPU, or in two types.

python -m benchmarks.gpu.agreement RUN NAME      # keeps a CPU run's figures as benchmarks/gpu/cpu_rows/NAME.json
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parent / "cpu_rows"
Figures = dict[str, dict[str, Any]]


def figures_of(results: Path) -> Figures:
    """What was measured after the edits of a run, by record, moment and probe; records that failed are left out."""
    found: Figures = {}
    for line in results.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for probe in row["probes"] if row["status"] == "edited" else ():
            after = probe.get("after") or {}
            name = "/".join((row["case_id"], row["measured_at"], probe["kind"], probe["text"]))
            found[name] = {key: after[key] for key in ("nll_answer", "nll_rival", "success", "exact") if key in after}
    return found


def agreement(one: Figures, other: Figures) -> dict[str, Any]:
    """Shares of equal verdicts, and differences of -log p, over the probes that both have.

    Returns:
        `probes` that both have and those that one has `alone`; `success` and `exact`: the shares of probes with the
        same verdict; `nll_median` and `nll_max`: of the absolute differences of the answers' -log p in nats.
    """
    both = [(one[name], other[name]) for name in one if name in other]
    found: dict[str, Any] = {"probes": len(both), "alone": len(one.keys() ^ other.keys())}
    for verdict in ("success", "exact"):
        pairs = [(a[verdict], b[verdict]) for a, b in both if verdict in a and verdict in b]
        found[verdict] = _mean(a == b for a, b in pairs)
    gaps = [abs(a["nll_answer"] - b["nll_answer"]) for a, b in both if "nll_answer" in a and "nll_answer" in b]
    found["nll_median"] = statistics.median(gaps) if gaps else None
    found["nll_max"] = max(gaps, default=None)
    return found


def shares(figures: Figures) -> dict[str, float | None]:
    """Share of the probes of each kind on which the edit succeeded."""
    kinds: dict[str, list[bool]] = {}
    for name, figure in figures.items():
        if "success" in figure:
            kinds.setdefault(name.split("/")[2], []).append(bool(figure["success"]))
    return {kind: _mean(hits) for kind, hits in kinds.items()}


def kept(name: str) -> Figures:
    """A CPU run's figures, as they were kept; none where there are none."""
    path = KEPT / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _mean(hits: Iterable[bool]) -> float | None:
    counted = [float(hit) for hit in hits]
    return sum(counted) / len(counted) if counted else None


def main() -> None:
    """Keep the figures of a run."""
    run, name = Path(sys.argv[1]), sys.argv[2]
    KEPT.mkdir(exist_ok=True)
    found = sorted(figures_of(run / "results.jsonl").items())
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found]
    (KEPT / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
