"""The anchor probe by layer, drawn: margins, raw and centred, with the windows that `mid` and `auto` would align."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedit.analysis.anchor_probe_report import Windows, span
from kedit.runtime.files import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "states as they are": {"own": "own", "other": "other", "margin": "margin"},
    "less the mean over objects": {"own_centred": "own", "other_centred": "other", "margin_centred": "margin"},
    "the same within relations": {"chance_within": "chance", "margin_within": "margin"},
}
OWN, OTHER, MARGIN = "#0072b2", "#d55e00", "#222222"  # colours that the colour-blind can tell apart
STYLES = {
    "own": {"color": OWN, "marker": "o", "label": "own: to its object’s anchor"},
    "other": {"color": OTHER, "marker": "s", "label": "other: to other objects’ anchors"},
    "margin": {"color": MARGIN, "linestyle": "--", "label": "margin: own - other"},
    "chance": {"color": "#e69f00", "linestyle": ":", "label": "margin by chance: objects dealt anew"},
}
MID, AUTO = "#b8b8b8", "#009e73"


def draw(path: Path, lines: Sequence[Mapping[str, Any]], windows: Windows, title: str, caption: str) -> None:
    """Writes the figure as a PNG.

    Args:
        path: The file.
        lines: Those of `kedit.analysis.anchor_probe_report.lines_of`.
        windows: What is shaded.
        title: What was probed: model, data.
        caption: How.
    """
    write_figure(path, probe_figure(lines, windows, title, caption))


def probe_figure(lines: Sequence[Mapping[str, Any]], windows: Windows, title: str, caption: str) -> Figure:
    """A panel each for raw states, for centred ones, and for the margin within relations where it was measured."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shown = {name: columns for name, columns in PANELS.items() if all(lines[0][key] is not None for key in columns)}
    figure = Figure(figsize=(3.2 + 3.7 * len(shown), 4.9), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    layers = [line["layer"] for line in lines]
    handles: dict[str, Any] = {}
    for panel, (name, columns) in zip(panels, shown.items(), strict=True):
        _shade(panel, windows.mid, MID, "mid", 0.4)
        _shade(panel, windows.auto, AUTO, "auto", 0.2)
        panel.axvline(windows.edited, color="#cc79a7", linewidth=1.8, label=f"edited layer ({windows.edited})")
        panel.axhline(0, color="#888888", linewidth=0.7)
        for column, style in columns.items():
            panel.plot(layers, [line[column] for line in lines], markersize=3.2, linewidth=1.6, **STYLES[style])
        panel.set_title(name, fontsize=11)
        panel.set_xlabel("layer (0 reads the embeddings)")
        panel.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(color="#e4e4e4", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        handles |= {label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    panels[0].set_ylabel("mean cosine to anchors")
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color="#444444")
    return figure


def _shade(panel: Any, layers: Sequence[int], colour: str, name: str, alpha: float) -> None:
    label = f"align.layers: {name} ({span(layers)})"
    panel.axvspan(layers[0] - 0.5, layers[-1] + 0.5, color=colour, alpha=alpha, linewidth=0, label=label)
