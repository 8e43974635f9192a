"""The importance of feed-forward nodes by layer (PAC, figure 4), drawn from the rows of a `Profile`, and their CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kedit.runtime.files import csv_text, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

COLUMNS = ("layer", "kind", "rank", "score")
KINDS = ("key", "value", "gate")
COLOURS = {"key": "#1f4e9c", "value": "#b8530c", "gate": "#2a8c4a"}
MEANINGS = {
    "zscore": "mean |z| of the gradient",
    "l2": "norm of the gradient",
    "abs_sum": "sum of the gradient's magnitudes",
    "signed_sum": "sum of the gradient",
}
CAUTIONS = {
    "zscore": "Z-scores are taken within a matrix: between layers they compare how peaked a gradient is, not its size.",
    "signed_sum": "The gradient's entries cancel in a signed sum: nodes of a low score may have a large gradient.",
}


def as_csv(rows: Iterable[Row]) -> str:
    """`Profile.rows` as CSV, with a header; floats as they are, to the last bit."""
    return csv_text(rows, COLUMNS)


def draw(rows: Iterable[Row], traces: int, path: Path, method: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Writes the figure as a PNG.

    Args:
        rows: `Profile.rows`.
        traces: `Profile.traces`.
        path: The file.
        method: What the run's module says of itself (`describe()`).
        data: What its data module says; `records` are those edited.
    """
    write_figure(path, importance_figure(rows, traces, method, data))


def importance_figure(rows: Iterable[Row], traces: int, method: Mapping[str, Any], data: Mapping[str, Any]) -> Figure:
    """A heat map of layer and rank for every kind of matrix, and beside them what the highest nodes score by layer.

    Layer 0 is at the bottom, as in the model. All heat maps share one colour scale, all panels their layers.

    Args:
        rows: `Profile.rows`, of one trace at least.
        traces: `Profile.traces`.
        method: What the run's module says of itself (`describe()`).
        data: What its data module says.
    """
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator

    layers, scores = tables(rows)
    trace = method["trace"]
    depth = max(table.shape[1] - 1 for table in scores.values())
    top = min(trace["nodes"], depth)
    figure = Figure(figsize=(6.0 + 3.5 * len(scores), 3.0 + 0.14 * len(layers)), dpi=120, layout="constrained")
    widths = [1.0] * len(scores) + [1.1]
    panels = figure.subplots(1, len(widths), squeeze=False, sharey=True, width_ratios=widths)[0]
    shown = np.concatenate([table[:, 1:].ravel() for table in scores.values()])
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    log = 0 < low < high  # a few nodes score ten times the rest
    norm = LogNorm(low, high) if log else Normalize(low, high)
    marks: dict[str, Any] = {"ticks": LogLocator(subs=(1, 2, 5)), "format": "%g"} if log else {}
    for panel, (kind, table) in zip(panels, scores.items(), strict=False):
        edges = np.arange(0.5, table.shape[1])
        levels = np.arange(layers[0] - 0.5, layers[-1] + 1)
        mesh = panel.pcolormesh(edges, levels, table[:, 1:], cmap="viridis", norm=norm)
        panel.set_xscale("log")
        ticks = [rank for rank in (1, 2, 5, 10, 20, 50, 100) if rank <= depth]
        panel.set_xticks(ticks, [str(rank) for rank in ticks])
        panel.set_xticks([], minor=True)
        panel.axvline(top + 0.5, color="white", linestyle=":", linewidth=1.3)
        panel.set_title(f"{kind}s: score by layer and rank", fontsize=11)
        panel.set_xlabel("rank of the node in its matrix")
    panels[0].set_ylabel("layer (0 reads the embeddings)")
    panels[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(
        mesh, ax=list(panels[: len(scores)]), pad=0.02, fraction=0.05, label="score, mean over traces", **marks
    )
    _profile(panels[-1], layers, scores, top)
    figure.legend(loc="outside right upper", frameon=False)
    figure.suptitle(_title(method, data, traces), x=0.01, ha="left", fontsize=12)
    figure.supxlabel(_caption(trace, top), x=0.01, ha="left", fontsize=8.5, color="#444444")
    return figure


def tables(rows: Iterable[Row]) -> tuple[list[int], dict[str, np.ndarray]]:
    """The rows as arrays.

    Returns:
        The layers, ascending, and for each kind, in the order of `KINDS`, its scores `[layers, 1 + ranks]`: column 0 is
        the mean over all nodes. NaN where there is none.
    """
    cells = {(row["kind"], row["layer"], row["rank"]): row["score"] for row in rows}
    layers = sorted({layer for _, layer, _ in cells})
    found = {}
    for kind in KINDS:
        ranks = [rank for own, _, rank in cells if own == kind]
        if ranks:
            table = [[cells.get((kind, layer, r), np.nan) for r in range(max(ranks) + 1)] for layer in layers]
            found[kind] = np.array(table)
    return layers, found


def _profile(panel: Any, layers: list[int], scores: Mapping[str, np.ndarray], top: int) -> None:
    """Lines over the layers: the mean of the `top` highest scores, and of all."""
    for kind, table in scores.items():
        peaks = table[:, 1 : top + 1].mean(1)
        panel.plot(peaks, layers, color=COLOURS[kind], marker="o", markersize=3.2, linewidth=1.5, label=f"{kind}s")
        panel.plot(table[:, 0], layers, color=COLOURS[kind], linestyle="--", linewidth=0.9, label=f"{kind}s, all nodes")
    panel.set_title(f"mean of the top {top}", fontsize=11)
    panel.set_xlabel("score, mean over nodes and traces")
    panel.grid(color="#e4e4e4", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _title(method: Mapping[str, Any], data: Mapping[str, Any], traces: int) -> str:
    score = method["trace"]["score"]
    records, times = (
        f"{n} {name}{'' if n == 1 else 's'}" for n, name in ((data["records"], "record"), (traces, "trace"))
    )
    return (
        f"How much the nodes of each layer’s feed-forward matrices matter: {method['method']} on {method['model']}\n"
        f"{records} of {data['name']}, {times} (scope: {method['scope']}), "
        f"score: {score} ({MEANINGS[score]}), seed {method['seed']}"
    )


def _caption(trace: Mapping[str, Any], top: int) -> str:
    ranked = f"Nodes are ranked within each matrix and trace. Left of the dotted line: the top {top}."
    return "\n".join([ranked, *(text for score, text in CAUTIONS.items() if score == trace["score"])])
