"""The figures of a report: the trade-off of a table, curves over edits, and what runs wrote of their layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from kedit.report.measure_tables import short, spaced
from kedit.report.ranks import Ranking
from kedit.report.run_files import Rows
from kedit.report.slope import slope
from kedit.report.svg import Axis, Point, Series, around, lines, percent, scatter
from kedit.sweeps.compare import Table
from kedit.sweeps.curve_figure import Points
from kedit.sweeps.measures import Measure
from kedit.sweeps.tradeoff_figure import traded_off


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        title: Its heading.
        drawn: The SVG.
        caption: What is seen, in a line.
    """

    title: str
    drawn: Markup
    caption: str


def tradeoff(table: Table) -> Figure | None:
    """Paraphrases against the neighbourhood, a point for each arm; None where no arm has both."""
    found = traded_off(table)
    if found is None:
        return None
    x, y, arms = found
    points = []
    for arm in arms:
        across, up = arm.cells[x.name], arm.cells[y.name]
        points.append(Point(short(arm, table), across.mean, up.mean, across.ci, up.ci, arm.name == table.against))
    title = f"{spaced(y.name)} against {spaced(x.name)}, {len(points)} arms"
    drawn = scatter(points, percent(f"{spaced(x.name)} (%): neighbours are left alone"),
                    percent(f"{spaced(y.name)} (%): paraphrases follow"), title)  # fmt: skip
    caption = "Better is up and to the right. Bars: 95 % intervals over records."
    return Figure("Trade-off: paraphrases against the neighbourhood", drawn, caption)


def moves(found: Ranking) -> Iterator[Figure]:
    """How the classic order changes by each measure of free answers."""
    first = found.measures[0]
    for m in range(len(found.measures) - found.free, len(found.measures)):
        left, right = (
            [(name, ranks[n].place, f"{ranks[n].value:.1f}") for name, ranks in found.arms.items()] for n in (0, m)
        )
        heads = spaced(first.name), spaced(found.measures[m].name)
        title = f"Places by {heads[0]} and by {heads[1]}, {len(left)} arms"
        caption = f"Places and numbers (%) by {heads[0]} on the left, by {heads[1]} on the right: who gains goes up."
        yield Figure("", slope(left, right, heads, title), caption)


def curves(points: Points) -> Iterator[Figure]:
    """A figure for each measure over the number of edits.

    Args:
        points: Number of edits and its table.
    """
    measures = {measure.name: measure for _, table in points for measure in table.measures}
    arms = list(dict.fromkeys(arm.name for _, table in points for arm in table.arms))
    edits = [n for n, _ in points]
    x = Axis("edits", edits[0] / 1.1, edits[-1] * 1.1, log=True, ticks=tuple(map(float, edits)))
    for measure in measures.values():
        series = []
        for name in arms:
            cells = [(n, arm.cells[measure.name]) for n, table in points for arm in table.arms
                     if arm.name == name and measure.name in arm.cells]  # fmt: skip
            if cells:
                ends = [cell.ci for _, cell in cells]
                series.append(Series(name, [n for n, _ in cells], [cell.mean for _, cell in cells], ends))
        values = [end for one in series for end in (*one.y, *(end for pair in one.ends for end in pair))]
        title = _with_unit(measure)
        y = percent(title) if measure.scale == "rate" else around(title, values)
        drawn = lines(series, x, y, f"{title} over the number of edits, {len(series)} arms")
        yield Figure(title, drawn, "")


def importance(runs: Mapping[str, Rows]) -> Iterator[Figure]:
    """PAC's paths: the mean score of the highest nodes of every matrix, layer by layer, a figure for each run."""
    for name, rows in runs.items():
        scores: dict[str, dict[int, list[float]]] = {}
        for row in rows:
            scores.setdefault(str(row["kind"]), {}).setdefault(int(row["layer"]), []).append(float(row["score"]))
        series = [
            Series(kind, sorted(of), [sum(of[layer]) / len(of[layer]) for layer in sorted(of)])
            for kind, of in scores.items()
        ]
        ranks = max(len(values) for of in scores.values() for values in of.values())
        yield Figure(
            name,
            lines(series, _layers(series), _values("mean score", series), f"PAC's paths by layer: {name}"),
            f"Score of the {ranks} highest nodes of each matrix, mean, as PAC traced them (importance.csv).",
        )


def cosines(runs: Mapping[str, Rows]) -> Iterator[Figure]:
    """STEAM's cosines to the anchor, layer by layer: a figure for each run and view."""
    for name, rows in runs.items():
        for view in dict.fromkeys(str(row["view"]) for row in rows):
            series = []
            for arm in dict.fromkeys(str(row["arm"]) for row in rows if row["view"] == view):
                own = sorted((int(r["layer"]), float(r["mean"])) for r in rows if (r["view"], r["arm"]) == (view, arm))
                faint = arm in ("own", "other")
                label = {"own": "own references", "other": "other references"}.get(arm, arm)
                series.append(Series(label, [layer for layer, _ in own], [mean for _, mean in own], faint=faint))
            title = f"cosine to the anchor ({view})"
            caption = "Mean over edits; the references are the ceiling and the floor (latent_cosine.csv)."
            drawn = lines(series, _layers(series), _values(title, series), f"STEAM's cosines by layer, {view}: {name}")
            yield Figure(f"{name}, {view}", drawn, caption)


def _layers(series: Sequence[Series]) -> Axis:
    last = max(max(one.x) for one in series)
    step = 1 if last < 12 else 5
    return Axis("layer", -0.3, last + 0.3, ticks=tuple(float(n) for n in range(0, int(last) + 1, step)))


def _values(title: str, series: Sequence[Series]) -> Axis:
    return around(title, [value for one in series for value in one.y])


def _with_unit(measure: Measure) -> str:
    unit = measure.unit or ("%" if measure.factor == 100 else "")
    return spaced(measure.name) + (f" ({unit})" if unit else "")
