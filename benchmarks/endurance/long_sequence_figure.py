"""Curves of `long_sequences.py`: what is left of all edits, of the first 50, of the model; what an edit costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kedit.runtime.files import write_figure

Point = dict[str, Any]


def _metric(kind: str, metric: str) -> Callable[[Point], float | None]:
    return lambda point: point.get("results", {}).get(kind, {}).get(metric, {}).get("after")  # percent


def _first(name: str) -> Callable[[Point], float | None]:
    return lambda point: 100 * point["first"][name] if name in point.get("first", {}) else None


PANELS: tuple[tuple[str, str, Callable[[Point], float | None]], ...] = (
    ("all edits so far: success", "%", _metric("rewrite", "success")),
    ("all edits so far: paraphrase success", "%", _metric("paraphrase", "success")),
    ("neighbourhood unchanged", "%", _metric("neighborhood", "unchanged")),
    ("the first 50 edits: exact answers", "%", _first("rewrite_exact")),
    ("perplexity", "", lambda point: point.get("perplexity")),
    ("CPU seconds per edit", "s", lambda point: point.get("cpu_s_per_edit")),
    ("delta, kB per edit", "kB", lambda point: point["bytes_per_edit"] / 1e3 if "bytes_per_edit" in point else None),
)
"""Title, unit, and what a point says; a panel for which no run says anything is left out."""


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes a PNG with a line for each run.

    Args:
        runs: Figures of `smollm2` jobs.
        path: The file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    panels = [panel for panel in PANELS if any(panel[2](point) is not None for run in runs for point in run["points"])]
    columns = min(3, len(panels))
    figure = Figure(figsize=(4.2 * columns, 3.4 * -(-len(panels) // columns)), dpi=120, layout="constrained")
    axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flatten()
    for axis, (title, unit, value) in zip(axes, panels, strict=False):
        for run in runs:
            pairs = [(point["edits"], y) for point in run["points"] if (y := value(point)) is not None]
            if pairs:
                axis.plot(*zip(*pairs, strict=True), marker="o", markersize=3, linewidth=1.4, label=run["label"])
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit)
        axis.set_xscale("log")
        edits = sorted({point["edits"] for run in runs for point in run["points"]})
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(edits, [f"{n:,}" for n in edits], fontsize=8)
        axis.set_xlabel("edits, one batch after another")
        axis.set_ylim(*((-3, 103) if unit == "%" else (0, None)))
        axis.grid(axis="y", color="#e4e4e4", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    write_figure(path, figure)
