"""Arms over the number of edits: a panel for each measure, a line for each arm, from the points of `eval_at`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kedit.results.rows import edits_of
from kedit.sweeps.compare import Comparison, Table
from kedit.sweeps.measures import Measure
from kedit.sweeps.tradeoff_figure import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACROSS = 3  # panels in a row
_STEEP = 30  # times: a measure that is no rate and spans more is drawn on a logarithmic axis

Points = list[tuple[int, Table]]  # number of edits, and the table of what was measured then


def curve_figures(result: Comparison) -> list[Figure]:
    """A figure for each protocol and data set with two numbers of edits or more.

    Args:
        result: What was compared; with `first` it shows how much is left of the first records.
    """
    return [_figure(points, result.first) for points in curves_of(result)]


def curves_of(result: Comparison) -> list[Points]:
    """What was measured after how many edits: of each protocol and data set with two numbers of edits or more."""
    found: dict[tuple[str, str], Points] = {}
    for table in result.tables:
        if (n := edits_of(table.alike.measured_at)) is not None:
            key = (json.dumps(table.alike.protocol, sort_keys=True), str(table.alike.data["fingerprint"]))
            found.setdefault(key, []).append((n, table))
    return [sorted(points, key=lambda point: point[0]) for points in found.values() if len(points) > 1]


def _figure(points: Points, first: int | None) -> Figure:
    from matplotlib.figure import Figure

    measures = list(dict.fromkeys(measure for _, table in points for measure in table.measures))
    arms = list(dict.fromkeys(arm.name for _, table in points for arm in table.arms))
    across = min(_ACROSS, len(measures))
    down = -(-len(measures) // across)
    figure = Figure(figsize=(4.2 * across + 0.075 * max(map(len, arms)) + 0.6, 3.4 * down + 0.9), dpi=120,
                    layout="constrained")  # fmt: skip
    panels = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for panel, measure in zip(panels, measures, strict=False):
        _panel(panel, points, arms, measure)
    for panel in panels[len(measures) :]:
        panel.set_visible(False)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside right center", frameon=False, fontsize=9)
    data, whom = points[0][1].alike.data, "all records edited so far" if first is None else f"the first {first} records"
    title = f"After so many edits: {whom} of {data['name']} ({data['fingerprint'][:6]}), on the model as it is then"
    figure.suptitle("\n".join(textwrap.wrap(title, 30 * across + 20)), x=0.01, ha="left", fontsize=10.5)
    figure.supxlabel("Bars: 95 % bootstrap intervals over records.", x=0.01, ha="left", fontsize=8.5, color="#444444")
    return figure


def _panel(panel: Any, points: Points, arms: Sequence[str], measure: Measure) -> None:
    means = []
    for nth, name in enumerate(arms):
        cells = [(n, arm.cells[measure.name]) for n, table in points for arm in table.arms
                 if arm.name == name and measure.name in arm.cells]  # fmt: skip
        x, y = [n for n, _ in cells], [cell.mean for _, cell in cells]
        ends = [[max(m - cell.ci[0], 0) for m, (_, cell) in zip(y, cells, strict=True)],
                [max(cell.ci[1] - m, 0) for m, (_, cell) in zip(y, cells, strict=True)]]  # fmt: skip
        look = {"color": COLOURS[nth % len(COLOURS)], "marker": MARKERS[nth % len(MARKERS)], "markersize": 4}
        panel.errorbar(x, y, yerr=ends, label=name, capsize=2, linewidth=1.5, elinewidth=0.8, **look)
        means += y
    panel.set_xscale("log")
    edits = [n for n, _ in points]
    panel.set_xticks(edits, [f"{n:,}" for n in edits])
    panel.minorticks_off()
    panel.set_xlabel("edits")
    if measure.scale != "other":
        panel.set_ylim(-3, 103)
    elif min(means) > 0 and max(means) > _STEEP * min(means):
        panel.set_yscale("log")
    unit = measure.unit or ("percent" if measure.factor == 100 else "")
    panel.set_title(measure.name.replace("_", " ") + (f" ({unit})" if unit else ""), fontsize=10)
    panel.grid(axis="y", color="#e8e8e8", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
