"""A comparison for people and programs: terminal, Markdown, CSV. The numbers are `kedit.sweeps.compare`'s."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table as RichTable

from kedit.runtime.files import csv_text
from kedit.sweeps.arm_statistics import Cell
from kedit.sweeps.collect_tables import title
from kedit.sweeps.compare import Arm, Comparison, Table
from kedit.sweeps.measures import Measure

UNEDITED = "(unedited)"
OFF_ZERO = "*"
COSTS_ARE = MappingProxyType(
    {
        "perplexity": "perplexity: of a text that has nothing to do with the edits; where it is one model's it has no "
        "interval.",
        "cpu_seconds": "cpu_seconds: of an edit; after N edits, of those since the measuring point before.",
        "bytes_per_edit": "bytes_per_edit: what an edit adds to the deltas; likewise.",
        "delta_bytes": "delta_bytes: of the delta of an edit (single), a batch (batch), the run (sequential).",
        "peak_memory": "peak_memory: of the process, or of the GPU, model and measuring included.",
    }
)
"""Lines of the legend."""
_LONG = 1e7  # numbers that are not written out
_BESIDE = 3  # columns of a terminal around a table's column
COLUMNS = (
    "data", "data_fingerprint", "records", "regime", "measured_at", "arm", "seeds", "measure", "unedited", "mean",
    "ci_low", "ci_high", "sd_over_seeds", "per_seed", "n_records", "against", "paired", "difference",
    "difference_ci_low", "difference_ci_high", "difference_excludes_zero", "difference_sd_over_seeds",
    "difference_per_seed", "difference_seeds", "n_in_both", "protocol",
)  # fmt: skip
"""Of the CSV file: a row per table, arm and measure."""


def legend(result: Comparison) -> list[str]:
    """What the numbers are, in a few lines."""
    lines = ["Percent (fluency: bits), mean over records; [95 % bootstrap interval over records]."]
    names = {measure.name for table in result.tables for measure in table.measures}
    lines += [text for name, text in COSTS_ARE.items() if name in names]
    if result.first is not None:
        lines.append(f"Only the first {result.first} records that each run edited.")
    if any(len(arm.seeds) > 1 for table in result.tables for arm in table.arms):
        lines.append("± standard deviation over seeds, which the intervals say nothing of.")
    if any(table.against for table in result.tables):
        how = "paired by record" if result.paired else "each arm resampled by itself; --paired is more exact"
        lines.append(f"Differences to {result.against}: {how}. {OFF_ZERO} the interval leaves 0 out.")
    return lines


def heading(result: Comparison) -> str:
    """What is compared."""
    arms = len({arm.name for table in result.tables for arm in table.arms})
    return f"{result.name}: {arms} arms compared"


def titled(table: Table) -> str:
    """What a table's arms have in common."""
    return title(table.alike)


def tables(result: Comparison, width: int) -> list[tuple[str, RichTable]]:
    """Titles and tables for the terminal: where not all measures fit in one, several below each other."""
    found = []
    for table in result.tables:
        for what, head, rows in _blocks(table):
            columns = [
                max(len(part) for cell in column for part in cell.split("\n"))
                for column in zip(head, *rows, strict=True)
            ]
            for nth, part in enumerate(_parts(columns, width)):
                found.append((what if nth == 0 else "", _rich(head, rows, [0, *part])))
    return found


def _parts(columns: Sequence[int], width: int) -> list[list[int]]:
    """The columns after the first, dealt into tables that begin with it and are no wider than `width`."""
    parts: list[list[int]] = [[]]
    for at in range(1, len(columns)):
        if parts[-1] and sum(columns[i] + _BESIDE for i in (0, *parts[-1], at)) + 1 > width:
            parts.append([])
        parts[-1].append(at)
    return parts


def as_markdown(result: Comparison, figures: Sequence[str | None] = (), curves: Sequence[str] = ()) -> str:
    """The tables as Markdown, with what is missing below.

    Args:
        result: The comparison.
        figures: File name of each table's figure, or None.
        curves: File names of figures over the number of edits.
    """
    parts = [f"# {heading(result)}"]
    for nth, table in enumerate(result.tables):
        for level, (what, head, rows) in enumerate(_blocks(table)):
            lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
            text = "\n".join("| " + " | ".join(_flat(cell) for cell in line) + " |" for line in lines)
            parts.append(f"{'##' if level == 0 else '###'} {what}\n\n{text}")
        if nth < len(figures) and figures[nth] is not None:
            parts.append(f"![trade-off]({figures[nth]})")
    parts += [f"![over the edits]({name})" for name in curves]
    parts.append("\n".join(legend(result)).replace("*", "\\*"))
    if result.notes:
        parts.append("\n".join(f"- {note}" for note in result.notes))
    return "\n\n".join(parts) + "\n"


def as_csv(result: Comparison) -> str:
    """A row per table, arm and measure, with every digit."""
    return csv_text(_csv_rows(result), COLUMNS)


def _csv_rows(result: Comparison) -> Iterator[dict[str, Any]]:
    for table in result.tables:
        data, protocol = table.alike.data, table.alike.protocol
        same = {
            "data": data["name"], "data_fingerprint": data["fingerprint"], "records": data["records"],
            "regime": protocol["regime"], "measured_at": table.alike.measured_at, "against": table.against,
            "protocol": json.dumps(protocol, sort_keys=True),
        }  # fmt: skip
        for arm in table.arms:
            for measure in table.measures:
                cell, change = arm.cells.get(measure.name), arm.differences.get(measure.name)
                if cell is not None:
                    row = same | {"arm": arm.name, "seeds": "; ".join(arm.seeds), "measure": measure.name}
                    row |= {"unedited": table.unedited.get(measure.name), "mean": cell.mean, "n_records": cell.n}
                    row |= {"ci_low": cell.ci[0], "ci_high": cell.ci[1], "sd_over_seeds": cell.spread}
                    row |= {"per_seed": "; ".join(map(repr, cell.per_seed))}
                    yield row | ({} if change is None else _csv_change(result, arm, change))


def _csv_change(result: Comparison, arm: Arm, change: Cell) -> dict[str, Any]:
    return {
        "paired": result.paired, "difference": change.mean, "difference_ci_low": change.ci[0],
        "difference_ci_high": change.ci[1], "difference_excludes_zero": change.off_zero,
        "difference_sd_over_seeds": change.spread, "difference_per_seed": "; ".join(map(repr, change.per_seed)),
        "difference_seeds": "; ".join(arm.shared_seeds), "n_in_both": change.n,
    }  # fmt: skip


def _blocks(table: Table) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows: of the arms as they are, and of their differences. A cell may have two lines."""
    head = ["arm", *map(_head, table.measures)]
    names = {arm.name: _named(table, arm) for arm in table.arms}
    rows = [[names[arm.name], *(_number(arm, measure) for measure in table.measures)] for arm in table.arms]
    if table.unedited:
        before = [table.unedited.get(measure.name) for measure in table.measures]
        cells = [
            "" if value is None else _digits(value, measure)
            for value, measure in zip(before, table.measures, strict=True)
        ]
        rows.insert(0, [UNEDITED, *cells])
    yield titled(table), head, rows
    others = [arm for arm in table.arms if arm.name != table.against]
    if table.against is not None:
        rows = [[names[arm.name], *(_difference(arm, measure) for measure in table.measures)] for arm in others]
        yield f"Difference to {table.against}", head, rows


def _named(table: Table, arm: Arm) -> str:
    """An arm's name; where some have fewer seeds than others, with how many."""
    n = len(arm.seeds)
    alike = len({len(other.seeds) for other in table.arms}) == 1
    return arm.name if alike else f"{arm.name} ({n} {'seed' if n == 1 else 'seeds'})"


def _head(measure: Measure) -> str:
    unit = f"\n({measure.unit})" if measure.unit else ""
    return measure.name.replace("/", "\n").replace("_", " ") + unit


def _number(arm: Arm, measure: Measure) -> str:
    cell = arm.cells.get(measure.name)
    return "" if cell is None else _text(cell, measure, "")


def _difference(arm: Arm, measure: Measure) -> str:
    cell = arm.differences.get(measure.name)
    return "" if cell is None else _text(cell, measure, "+", OFF_ZERO if cell.off_zero else "")


def _text(cell: Cell, measure: Measure, sign: str, mark: str = "") -> str:
    """A number with its mark and spread, and in a second line its interval; one of a whole run has none."""
    mean, low, high = (_digits(x, measure, sign) for x in (cell.mean, *cell.ci))
    spread = "" if cell.spread is None else f" ± {_digits(cell.spread, measure)}"
    alone = measure.scale == "other" and cell.ci[0] == cell.ci[1]
    return f"{mean}{spread}" if alone else f"{mean}{mark}{spread}\n[{low}, {high}]"


def _digits(value: float, measure: Measure, sign: str = "") -> str:
    if abs(value) >= _LONG:
        return f"{value:{sign}.2e}"
    return f"{round(value, measure.digits) + 0.0:{sign}.{measure.digits}f}"  # no -0.0


def _flat(cell: str) -> str:
    return cell.replace("\n", " ").replace("|", "\\|").replace("*", "\\*")


def _rich(head: Sequence[str], rows: Sequence[Sequence[str]], chosen: Sequence[int]) -> RichTable:
    table = RichTable(box=SIMPLE_HEAD, padding=(0, 1))
    for at in chosen:
        table.add_column(escape(head[at]), justify="right" if at else "left", overflow="fold", no_wrap=at > 0)
    for row in rows:
        table.add_row(*(escape(row[at]) for at in chosen))
    return table
