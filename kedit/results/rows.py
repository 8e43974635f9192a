"""One line of `results.jsonl`: its layout, and the quantities of one probe that reports average."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kedit.request import EditRecord

if TYPE_CHECKING:
    from kedit.evaluation.score import ProbeScore

Saved = Mapping[str, Any]  # a `ProbeScore.as_row()`, perhaps read from JSON


def _magnitude(score: Saved) -> float | None:
    if score["nll_rival"] is None:
        return None
    return exp(-score["nll_answer"]) - exp(-score["nll_rival"])


METRICS: Mapping[str, Callable[[Saved], float | None]] = MappingProxyType(
    {
        "success": lambda score: score["success"],
        "exact": lambda score: score["exact"],
        "token_accuracy": lambda score: score["token_accuracy"],
        "generated": lambda score: score.get("generated_match"),
        "port_em": lambda score: score.get("port_match"),
        "p_answer": lambda score: exp(-score["nll_answer"]),
        "magnitude": _magnitude,
    }
)
"""Quantities of one probe; None where it has none (`port_em`: all kinds but `portability`). All but `magnitude` are
shares in [0, 1]."""

RATES = ("success", "exact", "token_accuracy", "generated")


def unchanged(before: Saved, after: Saved) -> dict[str, float]:
    """`unchanged`: all argmax tokens are as before (0 or 1); `unchanged_tokens`: the share that is."""
    same = [a == b for a, b in zip(before["top1"], after["top1"], strict=True)]
    return {"unchanged": float(all(same)), "unchanged_tokens": sum(same) / len(same)}


def result_row(
    record: EditRecord,
    before: Sequence[ProbeScore] | None,
    after: Sequence[ProbeScore] | None,
    batch: int,
    measured_at: str,
    **more: Any,
) -> dict[str, Any]:
    """One line of `results.jsonl`.

    Args:
        record: The record; its probes are those of `before` and `after`, in order.
        before: Scores on the unedited model, where there are any.
        after: Scores on the edited model, where there are any.
        batch: Index of the record's edit batch.
        measured_at: Moment of the measurement (`edit`: after its own edit batch; `end`: after the last one; `at_10`:
            after the tenth edit).
        more: What else the line should say (request, protocol, norms), JSON-able.
    """
    probes = []
    for i, probe in enumerate(record.probes):
        probes.append(
            {
                "kind": probe.kind,
                "text": probe.text,
                "answer": probe.answer,
                "rival": probe.rival,
                "before": None if before is None else before[i].as_row(),
                "after": None if after is None else after[i].as_row(),
            }
        )
    return {"case_id": record.request.case_id, "batch": batch, "measured_at": measured_at, **more, "probes": probes}


def edits_of(measured_at: str) -> int | None:
    """Number of edits of a moment of `metrics.eval_at` (`at_10`: 10); None for any other."""
    name, _, edits = measured_at.partition("_")
    return int(edits) if name == "at" and edits.isdigit() else None
