"""The tables of a comparison, a grid for each group of measures: numbers, differences to an arm, ranks, costs.

The numbers are `kedit.sweeps.compare`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from kedit.report.grid import EMPTY, Column, Entry, Grid, texts
from kedit.report.ranks import FREE, Rank, Ranking
from kedit.results.rows import METRICS
from kedit.results.summary import PORT, SCORED, TITLES, TOKENS
from kedit.sweeps.arm_statistics import Cell
from kedit.sweeps.arms import Finished
from kedit.sweeps.compare import Arm, Table
from kedit.sweeps.measures import COSTS, ONCE, SETS, Measure, measures_of

GROUPS = {
    "edits": "What became of the edits",
    "free": "Free answers",
    "other": "Other probes",
    "tokens": "Tokens",
    "costs": "Costs and side effects",
}
"""Groups of measures, in the order of the page, and what their tables are called."""

UNEDITED = "unedited model"
_CLASSIC = ("score", *(TITLES[kind] for kind in SCORED))
_PLAIN = ("success", "exact", "unchanged")
_LOWER = ("cpu_seconds", "bytes_per_edit", "delta_bytes", "peak_memory", "perplexity")
_LONG = 1e7


def default_measures(runs: Iterable[Finished]) -> list[Measure]:
    """What a report shows where nothing is chosen: every measure of a table of methods that the runs have."""
    names = [*SETS["methods"], *SETS["main"]]
    found: dict[tuple[str, str], None] = {}
    for run in runs:
        for kinds in run.summary["results"].values():
            found |= {(kind, metric): None for kind, metrics in kinds.items() for metric in metrics}
        if run.summary["method"]["method"] == "PAC":
            names += SETS["tokens"]
        names += ("steps", "delta_over_weight")
    known = {*METRICS, "unchanged"} - {"token_accuracy", "p_answer", "magnitude", "port_em"}
    for kind, metric in found:
        wanted = metric in known and kind != "portability" and not (kind == "neighborhood" and metric == "exact")
        if wanted and (kind != "score" or metric == "success" or metric.startswith(FREE)):
            names.append(f"{TITLES.get(kind, kind)}/{metric}")
    return measures_of(",".join(dict.fromkeys(names)))


def group_of(measure: Measure) -> str:
    """Which of `GROUPS` a measure belongs to."""
    title, _, metric = measure.name.partition("/")
    if measure.name in COSTS or measure.name in ONCE or title == "ability":
        return "costs"
    if metric in (TOKENS, "token_accuracy", "unchanged_tokens"):
        return "tokens"
    if metric not in (*_PLAIN, *PORT):
        return "free"
    return "edits" if title in _CLASSIC else "other"


def grouped(table: Table) -> Iterator[tuple[str, list[Measure]]]:
    """The groups that a table has measures of, in order."""
    for group in GROUPS:
        own = [measure for measure in table.measures if group_of(measure) == group]
        if own:
            yield group, sorted(own, key=_order) if group == "edits" else own


def number_grid(table: Table, group: str, measures: Sequence[Measure], name: str) -> Grid:
    """The arms' own numbers, the unedited model's above them."""
    best = {measure.name: _best(table.arms, measure) for measure in measures}
    rows = []
    if any(measure.name in table.unedited for measure in measures):
        cells = [table.unedited.get(measure.name) for measure in measures]
        own = [EMPTY if x is None else _entry(x, m) for x, m in zip(cells, measures, strict=True)]
        rows.append((Entry(UNEDITED), *own))
    for arm in table.arms:
        own = []
        for measure in measures:
            cell = arm.cells.get(measure.name)
            own.append(EMPTY if cell is None else _number(cell, measure, best[measure.name]))
        rows.append((Entry(_named(table, arm)), *own))
    return Grid(name, GROUPS[group], _columns(measures), tuple(rows))


def difference_grid(table: Table, group: str, measures: Sequence[Measure], name: str) -> Grid | None:
    """What each arm has more than the one that it is compared with; None where there is none."""
    measures = [measure for measure in measures if any(measure.name in arm.differences for arm in table.arms)]
    if table.against is None or not measures:
        return None
    rows = []
    for arm in table.arms:
        if arm.name != table.against:
            cells = [arm.differences.get(measure.name) for measure in measures]
            own = [EMPTY if c is None else _difference(c, m) for c, m in zip(cells, measures, strict=True)]
            rows.append((Entry(_named(table, arm)), *own))
    return Grid(name, f"{GROUPS[group]}: difference to {table.against}", _columns(measures), tuple(rows))


def rank_grid(found: Ranking, name: str) -> Grid:
    """Places by every measure; of free answers also how many places an arm gains or loses."""
    classic = len(found.measures) - found.free
    columns = [Column("arm", text=True)]
    for m, measure in enumerate(found.measures):
        whole = f"rank by {spaced(measure.name)}"
        columns += [Column(spaced(measure.name), "%"), Column("rank" if m < classic else "rank, moved", whole=whole)]
    rows = []
    for arm, ranks in found.arms.items():
        row = [Entry(arm)]
        for m, rank in enumerate(ranks):
            measure = found.measures[m]
            row += [_entry(rank.value, measure), _place(rank, m >= classic)]
        rows.append(tuple(row))
    return Grid(name, "Ranks: classic measures beside free answers", tuple(columns), tuple(rows), rank_notes(found))


def rank_notes(found: Ranking) -> tuple[str, ...]:
    """What the ranks say, in sentences."""
    first = spaced(found.measures[0].name)
    lines = []
    for m in range(len(found.measures) - found.free, len(found.measures)):
        moved = [(ranks[m].moved, arm) for arm, ranks in found.arms.items() if ranks[m].moved]
        tau = found.agreement[m]
        said = "" if tau is None else f"; Kendall's tau {tau:.2f}"
        own = spaced(found.measures[m].name)
        line = (
            f"By {own}, {len(moved)} of {len(found.arms)} arms have another rank than by {first}: "
            f"{found.swapped[m]} of {found.pairs} pairs of arms change their order{said}."
        )
        if moved:
            up, down = max(moved), min(moved)
            ends = [f"most gained: {up[1]} ({up[0]:+d})"] * (up[0] > 0) + [f"most lost: {down[1]} ({down[0]:+d})"] * (
                down[0] < 0
            )
            line += f" Places {', '.join(ends)}."
        lines.append(line)
    lines.append(
        f"[from–to]: 95 % interval of a rank, all arms ranked on the same resampled records ({found.records}). "
        "=: another arm has the same number. ▲ ▼: places gained and lost against the first measure."
    )
    return tuple(lines)


def spaced(name: str) -> str:
    """A measure's name as text: `efficacy/wild` -> `efficacy, wild`."""
    return name.replace("_", " ").replace("/", ", ")


def short(arm: Arm, table: Table) -> str:
    """An arm's name in a figure."""
    return f"{arm.name} (compared with)" if arm.name == table.against else arm.name


def _order(measure: Measure) -> tuple[int, int]:
    """The score first, then by metric, as papers do."""
    title, _, metric = measure.name.partition("/")
    return (_PLAIN.index(metric), _CLASSIC.index(title))


def _columns(measures: Sequence[Measure]) -> tuple[Column, ...]:
    units = [measure.unit or ("%" if measure.factor == 100 else "") for measure in measures]
    return (
        Column("arm", text=True),
        *(Column(spaced(measure.name), unit) for measure, unit in zip(measures, units, strict=True)),
    )


def _named(table: Table, arm: Arm) -> str:
    """An arm's name; where some have fewer seeds than others, with how many."""
    n = len(arm.seeds)
    alike = len({len(other.seeds) for other in table.arms}) == 1
    return arm.name if alike else f"{arm.name} ({n} {'seed' if n == 1 else 'seeds'})"


def _best(arms: Sequence[Arm], measure: Measure) -> float | None:
    """The best number of a column, where there are several and one is better."""
    values = [arm.cells[measure.name].mean for arm in arms if measure.name in arm.cells]
    if len(values) < 2 or max(values) == min(values):
        return None
    if measure.name in _LOWER:
        return min(values)
    return max(values) if measure.scale == "rate" else None


def _digits(value: float, measure: Measure, sign: str = "") -> str:
    if abs(value) >= _LONG:
        return f"{value:{sign}.2e}"
    return f"{round(value, measure.digits) + 0.0:{sign}.{measure.digits}f}"  # no -0.0


def _entry(value: float, measure: Measure) -> Entry:
    rate = measure.scale == "rate" and measure.factor == 100
    return Entry(_digits(value, measure), value=value, share=min(max(value, 0.0), 100.0) if rate else None)


def _number(cell: Cell, measure: Measure, best: float | None) -> Entry:
    entry = _entry(cell.mean, measure)
    alone = measure.scale == "other" and cell.ci[0] == cell.ci[1]
    spread = "" if cell.spread is None else f" ± {_digits(cell.spread, measure)}"
    small = "" if alone else f"[{_digits(cell.ci[0], measure)}, {_digits(cell.ci[1], measure)}]"
    low, high = (None, None) if alone else cell.ci
    is_best = best is not None and _digits(cell.mean, measure) == _digits(best, measure)
    return Entry(entry.text + spread, small, cell.mean, low, high, share=entry.share, best=is_best)


def _difference(cell: Cell, measure: Measure) -> Entry:
    alone = measure.scale == "other" and cell.ci[0] == cell.ci[1]
    spread = "" if cell.spread is None else f" ± {_digits(cell.spread, measure)}"
    low, high = (_digits(end, measure, "+") for end in cell.ci)
    text = _digits(cell.mean, measure, "+") + spread
    if alone:
        return Entry(text, value=cell.mean)
    way = -1 if measure.name in _LOWER else 1 if measure.scale == "rate" else 0
    tone = "" if not (cell.off_zero and way) else "up" if cell.mean * way > 0 else "down"
    return Entry(text, f"[{low}, {high}]", cell.mean, *cell.ci, star=cell.off_zero, tone=tone)


def _place(rank: Rank, free: bool) -> Entry:
    text = f"{rank.place}{'=' if rank.tied else ''}"
    if free and rank.moved:
        text += f" {'▲' if rank.moved > 0 else '▼'}{abs(rank.moved)}"
    low, high = rank.ends
    return Entry(text, "" if low == high else f"[{low}–{high}]", rank.place, low, high)


def about_grid(name: str, title: str, pairs: Iterable[tuple[str, object]]) -> Grid:
    """Two columns: what, and its value."""
    return Grid(name, title, (Column("", text=True), Column("", text=True)), tuple(texts(pair) for pair in pairs))
