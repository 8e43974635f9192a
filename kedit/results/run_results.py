"""What the rows of a whole run say: the summary of every moment, the curve, the edits that failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kedit.results.rows import edits_of, without_probes
from kedit.results.summary import SummaryAccumulator

Summary = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class RunResults:
    """The numbers of a run.

    Attributes:
        moments: Moment of measurement -> `SummaryAccumulator.summary` of its rows.
        curve: The same after numbers of edits (`metrics.eval_at`): `edits`, `measured_at`, `results`.
        failed: Case id -> why its edit failed.
        edits: What the card of a delta says of each row, those of the curve left out.
    """

    moments: dict[str, Summary]
    curve: list[dict[str, Any]]
    failed: dict[str, str]
    edits: list[dict[str, Any]]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], resamples: int) -> RunResults:
        """Goes through the rows once.

        Args:
            rows: Of `results.jsonl`.
            resamples: Bootstrap resamples behind the intervals.
        """
        accumulators: dict[str, SummaryAccumulator] = {}
        failed: dict[str, str] = {}
        edits: list[dict[str, Any]] = []
        for row in rows:
            accumulators.setdefault(row["measured_at"], SummaryAccumulator(row["measured_at"])).add(row)
            if row["status"] == "failed":
                failed[row["case_id"]] = row["error"]
            if edits_of(row["measured_at"]) is None:
                edits.append(without_probes(row))
        summaries = {measured_at: accumulator.summary(resamples) for measured_at, accumulator in accumulators.items()}
        curve = [
            {"edits": edits_of(measured_at), "measured_at": measured_at, "results": summary}
            for measured_at, summary in summaries.items()
            if edits_of(measured_at)
        ]
        moments = {measured_at: summary for measured_at, summary in summaries.items() if edits_of(measured_at) is None}
        return cls(moments, curve, failed, edits)
