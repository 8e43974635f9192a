"""What an edit gains on paraphrases against what it costs beside them: one point per arm, with both intervals.

Names stand in a legend beside the panel, so that no two can lie on each other, however near the points are.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kedit.sweeps.compare import Arm, Table
from kedit.sweeps.measures import Measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#5b3a9e", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # as many as are prime to the colours: 56 arms look different
PARTNERS = MappingProxyType({"exact": "unchanged", "token_accuracy": "unchanged_tokens"})
"""Metric of paraphrases -> that of neighbours that it is drawn against, where it is there; else the same one."""


def axes(measures: Sequence[Measure]) -> tuple[Measure, Measure] | None:
    """Which of a table's measures are drawn, on x (neighbourhood) and on y (paraphrases): the first pair.

    Args:
        measures: Those of the table.

    Returns:
        None where one of the two was not measured.
    """
    one = [measure for measure in measures if measure.how == "one"]
    beside = [measure for measure in one if measure.kind == "neighborhood"]
    spread = [measure for measure in one if measure.kind.startswith("paraphrase")]
    if not beside or not spread:
        return None
    of = {measure.columns[0][1]: measure for measure in beside}
    y = spread[0]
    metric = y.columns[0][1]
    return of.get(PARTNERS.get(metric, metric)) or of.get(metric) or beside[0], y


def traded_off(table: Table) -> tuple[Measure, Measure, list[Arm]] | None:
    """Both axes, and the arms that have both measures; None where none has."""
    pair = axes(table.measures)
    if pair is None:
        return None
    x, y = pair
    arms = [arm for arm in table.arms if x.name in arm.cells and y.name in arm.cells]
    return (x, y, arms) if arms else None


def tradeoff_figure(table: Table, title: str) -> Figure | None:
    """The figure of one table.

    Args:
        table: The arms.
        title: What they have in common.

    Returns:
        None where no arm has both measures.
    """
    from matplotlib.figure import Figure

    found = traded_off(table)
    if found is None:
        return None
    x, y, arms = found
    longest = max(len(arm.name) for arm in arms)
    figure = Figure(figsize=(6.4 + 0.085 * min(longest, 60), max(5.2, 1.4 + 0.27 * len(arms))), dpi=120,
                    layout="constrained")  # fmt: skip
    panel: Any = figure.subplots()
    for nth, arm in enumerate(arms):
        across, up = arm.cells[x.name], arm.cells[y.name]
        base = arm.name == table.against
        colour = "#111111" if base else COLOURS[nth % len(COLOURS)]
        panel.plot(across.ci, [up.mean] * 2, color=colour, linewidth=1.1, alpha=0.55)
        panel.plot([across.mean] * 2, up.ci, color=colour, linewidth=1.1, alpha=0.55)
        marker, size = ("*", 15) if base else (MARKERS[nth % len(MARKERS)], 8)
        style = {"color": colour, "markeredgecolor": "white", "linestyle": "none", "zorder": 3}
        label = f"{arm.name} (compared with)" if base else arm.name
        panel.plot([across.mean], [up.mean], marker=marker, markersize=size, label=label, **style)
    panel.set_xlabel(f"{x.name.replace('_', ' ').replace('/', ', ')} (percent): the neighbourhood is left alone")
    panel.set_ylabel(f"{y.name.replace('_', ' ').replace('/', ', ')} (percent): paraphrases follow")
    panel.grid(color="#e8e8e8", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    seeds = [len(arm.seeds) for arm in arms]
    over = "" if max(seeds) == 1 else f", of means over {'up to ' * (len(set(seeds)) > 1)}{max(seeds)} seeds"
    figure.suptitle("\n".join(textwrap.wrap(title, 78)), x=0.01, ha="left", fontsize=10.5)
    caption = f"Bars: 95 % bootstrap intervals over records{over}. Better is up and to the right."
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color="#444444")
    return figure
