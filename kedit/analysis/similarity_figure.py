"""The histograms of r(k) before and after REP (its figures of whitened similarity), drawn from result rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kedit.analysis.similarity import KINDS
from kedit.analysis.similarity_report import Row, layers_of, measured, values_of
from kedit.runtime.files import write_figure

MEAN = "mean of random"
EDGES = np.linspace(-0.05, 1.05, 12)
COLOURS: Mapping[str, str] = {
    "paraphrase_id": "#1f4e9c",
    "paraphrase_ood": "#7fa8e0",
    "shuffle_id": "#b8530c",
    "shuffle_ood": "#f2a65e",
    "long_context": "#2a8c4a",
    "neighborhood": "#8e3b9e",
    "random": "#8a8a8a",
}


def draw(rows: Iterable[Row], path: Path, method: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Writes a PNG: a panel before and, with REP, one after; a line of panels for each edited layer.

    Bars are percent of a kind's keys; values outside the bins are in the first or the last, which the caption says.

    Args:
        rows: Result rows.
        path: The file.
        method: What the run's module says of itself (`describe()`).
        data: What its data module says.
    """
    from matplotlib.figure import Figure

    rows = measured(rows)
    layers = layers_of(rows)
    kinds = [kind for kind in KINDS if any(values_of(rows, layer, kind, "before") for layer in layers)]
    adapted = any(values_of(rows, layer, kind, "after") for layer in layers for kind in kinds)
    sides = ("before", "after") if adapted else ("before",)
    size = (3.6 + 6.4 * len(sides), 1.9 + 3.4 * len(layers))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(len(layers), len(sides), squeeze=False, sharex=True, sharey=True)
    outside: dict[str, list[bool]] = {side: [] for side in sides}
    for across, layer in zip(panels, layers, strict=True):
        for panel, side in zip(across, sides, strict=True):
            values = {kind: np.array(values_of(rows, layer, kind, side)) for kind in kinds}
            outside[side] += [bool(x) for v in values.values() for x in (v < EDGES[0]) | (v > EDGES[-1])]
            _panel(panel, values)
            measured_at = {
                "before": f"{method.get('editor', method['method'])} alone",
                "after": f"with {method['method']}",
            }
            panel.set_title(f"layer {layer}, {measured_at[side]}" if adapted else f"layer {layer}", fontsize=11)
        across[0].set_ylabel("share of the kind's keys (%)")
    for panel in panels[-1]:
        panel.set_xlabel("r(k) = k·u / k*·u, share of the edit that the key receives (0: none, 1: all)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    if labels[0] == MEAN:
        handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]
    figure.legend(handles, labels, loc="outside right upper", frameon=False, title="query (number of keys)")
    figure.suptitle(_title(method, data, len(rows)), x=0.01, ha="left", fontsize=12)
    figure.supxlabel(_caption(outside), x=0.01, ha="left", fontsize=8.5, color="#444444")
    write_figure(path, figure)


def _panel(panel: Any, values: Mapping[str, Any]) -> None:
    """Grouped bars of every kind, and the dashed mean of `random`."""
    width = 0.088 / len(values)
    centres = (EDGES[:-1] + EDGES[1:]) / 2
    for place, (kind, r) in enumerate(values.items()):
        counts, _ = np.histogram(r.clip(EDGES[0], EDGES[-1]), EDGES)
        offset = (place - (len(values) - 1) / 2) * width
        label = f"{kind.replace('_', ' ')} ({len(r)})"
        panel.bar(centres + offset, 100 * counts / max(len(r), 1), width, color=COLOURS[kind], label=label)
    for edge in EDGES[1:-1]:
        panel.axvline(edge, color="#e4e4e4", linewidth=0.7, zorder=0)
    if len(values.get("random", ())):
        panel.axvline(values["random"].mean(), color="#222222", linestyle="--", linewidth=1.1, label=MEAN)
    panel.set_xlim(EDGES[0], EDGES[-1])
    panel.set_xticks(centres)
    panel.set_ylim(0, 102)
    panel.tick_params(labelsize=9)
    panel.spines[["top", "right"]].set_visible(False)


def _title(method: Mapping[str, Any], data: Mapping[str, Any], n: int) -> str:
    name = f"{method['editor']} + {method['method']}" if "editor" in method else method["method"]
    if "mode" in method:
        name += f" ({'the paper’s recipe' if method.get('parity') else method['mode'].replace('_', ' ')})"
    records = f"{n} {'record' if n == 1 else 'records'} of {data['name']}"
    return (
        f"How much of the edit reaches the keys of a query: {name} on {method['model']}\n"
        f"{records}, each edit alone on the unedited model, seed {method['seed']}"
    )


def _caption(outside: Mapping[str, Sequence[bool]]) -> str:
    shares = ", ".join(f"{side}: {100 * float(np.mean(hits)):.1f} %" for side, hits in outside.items() if hits)
    return (
        "Keys at the subject's last token; neighborhood: the largest r over the prompt's tokens.\n"
        "id: variants that may train, ood: that never do. random: the bare prompts of other records.\n"
        f"Values below -0.05 are counted in the first bin, values above 1.05 in the last ({shares})."
    )
