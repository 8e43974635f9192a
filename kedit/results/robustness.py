"""How an edit stands reworded, scrambled and long-context prompts: the figures of REP's tables, from result rows.

Like a summary, a function of the rows of `results.jsonl` and of nothing else. What they mean: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from kedit.results.intervals import paired_cell
from kedit.results.rows import edits_of
from kedit.results.summary import summarise
from kedit.results.tables import MEASURED_AT
from kedit.runtime.files import csv_text

FIGURES = (
    ("rewrite", "exact"),
    ("paraphrase_id", "exact"),
    ("paraphrase_ood", "exact"),
    ("shuffle_id", "exact"),
    ("shuffle_ood", "exact"),
    ("long_context", "exact"),
    ("long_context_id", "exact"),
    ("neighborhood", "unchanged_tokens"),
)
"""Kinds of probe with the metric that is reported of them."""

COLUMNS: tuple[str, ...] = (
    "measured_at", "kind", "metric", "micro_before", "micro_after", "before", "after", "ci_low", "ci_high",
    "change", "change_ci_low", "change_ci_high", "n_records", "n_probes",
)  # fmt: skip


def summary_rows(rows: Iterable[Mapping[str, Any]], resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """One line per moment of measurement and kind of probe, and one for the fluency, where they were measured.

    A line has `COLUMNS`: `micro_before` and `micro_after` are means over all probes (what REP reports), `before`,
    `after` and `change` means over records, each the mean over its probes, with 95 % bootstrap intervals over
    records. Percent, but for `fluency`, which is in bits.
    """
    rows = list(rows)
    lines = []
    for measured_at in dict.fromkeys(str(row["measured_at"]) for row in rows):
        of_moment = [row for row in rows if row["measured_at"] == measured_at]
        summary = summarise(of_moment, measured_at, resamples, seed)
        for kind, metric in FIGURES:
            cell = summary.get(kind, {}).get(metric)
            if cell is not None:
                lines.append(_line(measured_at, kind, metric, cell, cell["micro"]))
        if (cell := fluency_cell(of_moment, resamples, seed)) is not None:
            lines.append(
                _line(measured_at, "fluency", "entropy", cell, {"before": cell["before"], "after": cell["after"]})
            )
    return lines


def fluency_cell(rows: Sequence[Mapping[str, Any]], resamples: int = 2000, seed: int = 0) -> dict[str, Any] | None:
    """Mean n-gram entropy before and after, over the records that have both; None where none has."""
    fluencies = {str(row["case_id"]): row["fluency"] for row in rows if row.get("fluency") is not None}
    pairs = [(f["before"], f["after"]) for f in fluencies.values() if None not in (f["before"], f["after"])]
    return {**paired_cell(pairs, resamples, seed), "n_probes": len(pairs)} if pairs else None


def as_csv(lines: Iterable[Mapping[str, Any]]) -> str:
    """The lines of `summary_rows` as CSV, with a header."""
    return csv_text(lines, COLUMNS)


def robustness_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """The lines of `summary_rows` as a table."""
    caption = (
        "percent, mean over records with its 95 % interval; micro: mean over probes\n"
        "exact match with the new target, teacher forced; neighborhood: tokens as before\n"
        "id: variants that may train, ood: that never do; fluency: entropy in bits"
    )
    table = Table(title="robustness", caption=caption, title_justify="left", caption_justify="left")
    alone = {
        line["kind"]: line for line in lines if line["measured_at"] == "editor"
    }  # of a method that adds to an editor
    table.add_column("probe")
    for name, wanted in (
        ("micro\nbefore", not alone), ("micro\neditor", bool(alone)), ("micro\nafter", True),
        ("before", True), ("editor", bool(alone)), ("after", True), ("95 % interval", True), ("probes", not alone),
    ):  # fmt: skip
        if wanted:
            table.add_column(name, justify="right", no_wrap=True)
    moments = [
        measured_at for measured_at in dict.fromkeys(line["measured_at"] for line in lines) if measured_at != "editor"
    ]
    moments = [
        measured_at for measured_at in moments if edits_of(measured_at) is None
    ]  # the curve has a table of its own
    for measured_at in moments:
        if len(moments) > 1 or measured_at != "edit":
            table.add_section()
            table.add_row(f"[bold]{MEASURED_AT.get(measured_at, measured_at)}[/bold]")
        for line in (line for line in lines if line["measured_at"] == measured_at):
            digits = 2 if line["kind"] == "fluency" else 1
            cells = []
            for name in ("micro_before", "micro_after", "before", "after"):
                if alone and name.endswith("after"):
                    cells.append(_number(alone[line["kind"]][name], digits))
                if not (alone and name == "micro_before"):
                    cells.append(_number(line[name], digits))
            ends = [_number(line[name], digits) for name in ("ci_low", "ci_high")]
            cells.append(f"[{ends[0]}, {ends[1]}]" if all(ends) else "")
            table.add_row(line["kind"].replace("_", " "), *cells, *([] if alone else [str(line["n_probes"])]))
    return table


def _line(
    measured_at: str, kind: str, metric: str, cell: Mapping[str, Any], micro: Mapping[str, Any]
) -> dict[str, Any]:
    low, high = cell["ci"] or (None, None)
    change_low, change_high = cell["change_ci"] or (None, None)
    values = (measured_at, kind, metric, micro["before"], micro["after"], cell["before"], cell["after"], low, high,
              cell["change"], change_low, change_high, cell["n_records"], cell["n_probes"])  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
