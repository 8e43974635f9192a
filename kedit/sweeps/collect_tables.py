"""A sweep's results for people and programs: terminal, Markdown, CSV. The numbers are `kedit.sweeps.collect`'s."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from kedit.results.rows import edits_of
from kedit.results.summary import TITLES
from kedit.results.tables import MEASURED_AT, interval, number
from kedit.runtime.files import csv_text
from kedit.sweeps.collect import Alike, Collected, Group, Line, csv_rows

COLUMNS = ("setting", "before", "after", "95 % interval")
LEGEND = (
    "Percent, mean over records; [95 % bootstrap interval over records], or ± standard deviation over seeds.",
    "success: p(wanted) > p(rival); exact: argmax is the wanted answer; generated: free greedy generation begins "
    "with it; wild: up to its natural stop it is the answer; unchanged: argmax as before the edit.",
)


def tables(result: Collected) -> list[tuple[str, Table]]:
    """A title and a table per group, for the terminal: 80 columns are enough."""
    return [(title(group), _table(group)) for group in result.groups]


def as_markdown(result: Collected) -> str:
    """The same tables as Markdown, with what is missing below."""
    parts = [f"# {heading(result)}", *(_markdown(group) for group in result.groups)]
    if result.groups:
        parts.append("\n".join(LEGEND))
    if result.notes:
        parts.append("\n".join(f"- {note}" for note in result.notes))
    return "\n\n".join(parts) + "\n"


def as_csv(result: Collected) -> str:
    """A row per run, moment, kind of probe and metric, with every digit."""
    columns, rows = csv_rows(result)
    return csv_text(rows, columns)


def heading(result: Collected) -> str:
    """What was collected."""
    return f"sweep {result.name}: {len(result.runs)} of {result.tasks} tasks done"


def title(group: Alike) -> str:
    """What a group's runs have in common."""
    data, protocol = group.data, group.protocol
    measured_at = MEASURED_AT["editor"] if group.measured_at == "editor" else _measured(group)
    parts = [f"{data['name']} ({data['records']} records, {data['fingerprint'][:6]})", f"regime {protocol['regime']}"]
    parts += [*([f"protocol {protocol['name']}"] if "name" in protocol else []), measured_at, *group.differs]
    if protocol["fast_dev_run"]:
        parts.append("fast_dev_run: the numbers mean nothing")
    return ", ".join(parts)


def _measured(group: Alike) -> str:
    """When, in the words of the protocol, or of the moment where a run has several."""
    if (edits := edits_of(group.measured_at)) is not None:
        return f"measured after {edits} edits"
    if group.protocol["regime"] == "sequential":
        return MEASURED_AT.get(group.measured_at, group.measured_at)
    return f"measured {group.protocol['measured']}"


def _table(group: Group) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "setting" else "right", overflow="fold")
    for (kind, metric), lines in _measures(group):
        table.add_row(f"[bold]{_name(kind)} {metric}[/bold]")
        for line in lines:
            table.add_row(f"  {escape(line.setting)}", number(line.before), number(line.after), escape(spread(line)))
    return table


def _markdown(group: Group) -> str:
    rows = [("measure", *COLUMNS), ("---", "---", "---:", "---:", "---:")]
    for (kind, metric), lines in _measures(group):
        for line in lines:
            rows.append(
                (f"{_name(kind)} {metric}", line.setting, number(line.before), number(line.after), spread(line))
            )
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return f"## {title(group)}\n\n{table}"


def spread(line: Line) -> str:
    """How sure a number is: its interval, or its spread over seeds."""
    if line.seeds == 1:
        return interval(line.ci)
    deviation = "" if line.spread is None else f"± {line.spread:.1f} "
    return f"{deviation}({line.seeds} seeds)"


def _measures(group: Group) -> Iterator[tuple[tuple[str, str], Iterator[Line]]]:
    yield from groupby(group.lines, lambda line: (line.kind, line.metric))


def _name(kind: str) -> str:
    return TITLES.get(kind, kind).replace("_", " ")
