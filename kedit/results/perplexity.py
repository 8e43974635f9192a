"""Perplexity of a text before and after the edits: what the rows of a run say of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kedit.results.intervals import bootstrap, paired_cell


def summary_rows(rows: Iterable[Mapping[str, Any]], resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """One line per moment of measurement: `before`, `after`, `change`, intervals over records, `n_records`.

    Where it was measured also `kl`, the mean KL(unedited || edited) in nats, and `kl_ci`.

    Where all records of a moment were measured on one model (all regimes but `single`), the intervals are points.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    drifts: dict[str, dict[str, float]] = {}
    for row in rows:
        if (own := row.get("perplexity")) is not None:
            found.setdefault(str(row["measured_at"]), {})[str(row["case_id"])] = (own["before"], own["after"])
            if "kl" in own:
                drifts.setdefault(str(row["measured_at"]), {})[str(row["case_id"])] = own["kl"]
    lines = []
    for measured_at, pairs in found.items():
        line = {"measured_at": measured_at, **paired_cell(list(pairs.values()), resamples, seed)}
        if values := list(drifts.get(measured_at, {}).values()):
            ends = bootstrap(values, resamples, seed, scale="other")
            line |= {"kl": round(sum(values) / len(values), 6), "kl_ci": [round(end, 6) for end in ends]}
        lines.append(line)
    return lines
