"""The curve of a sequential run over its number of edits (`metrics.eval_at`): a table, a CSV and a figure.

The numbers are `kedit.results.summary`'s; nothing is computed here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from kedit.errors import KeditError
from kedit.results.summary import TITLES
from kedit.results.tables import interval, number
from kedit.runtime.files import csv_text, write_figure

COLUMNS = (
    "edits", "kind", "metric", "before", "after", "ci_low", "ci_high", "change", "change_ci_low", "change_ci_high",
    "n_records", "n_probes",
)  # fmt: skip
KINDS = (*TITLES, "score")
SHOWN = {"success": KINDS, "exact": ("rewrite", "paraphrase"), "unchanged": ("neighborhood",)}
COLOURS = {"rewrite": "#1f4e9c", "paraphrase": "#2a8c4a", "neighborhood": "#b8530c", "score": "#8a8a8a"}

Point = Mapping[str, Any]  # edits, measured_at, results

log = logging.getLogger(__name__)


def check_counts(counts: Sequence[int], ends: Sequence[int]) -> None:
    """Whether every number of `eval_at` is at the end of an edit batch; those above the run's edits are left out.

    Args:
        counts: The numbers of edits.
        ends: How many edits were made after each batch, from 0.

    Raises:
        KeditError: One is within a batch; names the nearest ends.
    """
    late = [n for n in counts if n > ends[-1]]
    if late:
        log.warning("metrics.eval_at: left out, this run has %d edits: %s", ends[-1], ", ".join(map(str, late)))
    for n in counts:
        after = next((end for end in ends if end >= n), n)
        if after != n and n not in late:
            before = max(end for end in ends if end < n)
            near = f"the nearest are {before} and {after}" if before else f"the first is {after}"
            raise KeditError(f"metrics.eval_at: {n} edits are not at the end of an edit batch; {near}")


def as_csv(curve: Sequence[Point]) -> str:
    """A row per number of edits, kind of probe and metric; nothing is rounded."""
    rows = []
    for point in curve:
        for kind, metrics in point["results"].items():
            for metric, cell in metrics.items():
                row = {"edits": point["edits"], "kind": kind, "metric": metric}
                row |= {name: cell.get(name) for name in ("before", "after", "change", "n_records", "n_probes")}
                row["ci_low"], row["ci_high"] = cell.get("ci") or (None, None)
                row["change_ci_low"], row["change_ci_high"] = cell.get("change_ci") or (None, None)
                rows.append(row)
    return csv_text(rows, COLUMNS)


def curve_table(curve: Sequence[Point]) -> Table:
    """A block per number of edits: all records edited so far, on the model as it was then."""
    caption = (
        "all records edited so far, on the model as it was then: success, below it exact and unchanged;\n"
        "percent, mean over records [95 % interval]"
    )
    table = Table(title="after so many edits", caption=caption, title_justify="left", caption_justify="left")
    table.add_column("edits", no_wrap=True)
    for kind in KINDS:
        table.add_column(TITLES.get(kind, kind), justify="right", no_wrap=True)
    for point in curve:
        table.add_section()
        for metric, kinds in SHOWN.items():
            cells = [_cell(point, kind, metric) if kind in kinds else None for kind in KINDS]
            if any(cells):
                texts = [f"{number(c['after'])}\n{interval(c['ci'])}".strip() if c else "" for c in cells]
                table.add_row(str(point["edits"]) if metric == "success" else f"  {metric}", *texts)
    return table


def draw(curve: Sequence[Point], path: Path, method: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Writes a PNG: efficacy, paraphrases, locality and score against the number of edits, on a logarithmic axis.

    Args:
        curve: The points.
        path: The file.
        method: What the run's module says of itself (`describe()`).
        data: What its data module says.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=(11, 4.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    _panel(left, curve, {kind: "success" for kind in KINDS})
    left.set_title("success: p(wanted) > p(rival)", fontsize=11)
    left.set_ylabel("records edited so far (%)")
    _panel(right, curve, {kind: metric for metric in ("exact", "unchanged") for kind in SHOWN[metric]})
    right.set_title("argmax: exact answers; locality: unchanged", fontsize=11)
    edits = [point["edits"] for point in curve]
    for panel in (left, right):
        panel.set_xscale("log")
        panel.set_xlim(edits[0] / 1.25, edits[-1] * 1.25)
        panel.xaxis.set_major_locator(FixedLocator(edits))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks(edits, [f"{n:,}" for n in edits])
        panel.set_xlabel("edits made so far, one after another")
        panel.set_ylim(-3, 103)
        panel.grid(axis="y", color="#e4e4e4", linewidth=0.7)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    name = f"{method['editor']} + {method['method']}" if "editor" in method else method["method"]
    title = f"What is left of the edits after so many: {name} on {method['model']}"
    about = f"{data['name']}, regime sequential, seed {method['seed']}; bars: 95 % intervals over records"
    figure.suptitle(f"{title}\n{about}", x=0.01, ha="left", fontsize=12)
    write_figure(path, figure)


def _panel(panel: Any, curve: Sequence[Point], metrics: Mapping[str, str]) -> None:
    for kind, metric in metrics.items():
        points = list(_points(curve, kind, metric))
        if not points:
            continue
        x, y, low, high = (list(column) for column in zip(*points, strict=True))
        ends = [
            [max(v - a, 0) for v, a in zip(y, low, strict=True)],
            [max(b - v, 0) for v, b in zip(y, high, strict=True)],
        ]
        style = "--" if kind == "score" else "-"
        label = {"paraphrase": "paraphrase (generality)"}.get(kind, TITLES.get(kind, kind))
        panel.errorbar(x, y, yerr=ends, color=COLOURS[kind], linestyle=style, marker="o", markersize=4, capsize=3,
                       linewidth=1.6, elinewidth=0.9, label=label)  # fmt: skip


def _points(curve: Sequence[Point], kind: str, metric: str) -> Iterator[tuple[int, float, float, float]]:
    for point in curve:
        if cell := _cell(point, kind, metric):
            low, high = cell["ci"] or (cell["after"], cell["after"])
            yield point["edits"], cell["after"], low, high


def _cell(point: Point, kind: str, metric: str) -> Mapping[str, Any] | None:
    """A number with its interval; None where it was not measured."""
    cell = point["results"].get(kind, {}).get(metric)
    return None if cell is None or cell["after"] is None else cell
