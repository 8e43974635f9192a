"""The table that `kedit fit` ends with: at most ten rows of what matters most. `kedit.results.tables` has them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from kedit.results.summary import INVARIANT, SCORED, TITLES
from kedit.results.tables import interval, name_of, number

MAIN = (
    ("rewrite", "success"),
    ("rewrite", "exact"),
    ("paraphrase", "success"),
    ("paraphrase", "exact"),
    ("neighborhood", "success"),
    ("neighborhood", "unchanged"),
    ("portability", "exact"),
)
CAPTION = """\
percent of records [95 % interval]. success: the wanted answer is more probable
than the old one; exact: the model's own words are the wanted answer
(unchanged: as before the edit); score: harmonic mean"""

Cell = Mapping[str, Any]


def last_moment(summary: Mapping[str, Any]) -> str:
    """The moment that a short report shows: the end of a run where it was measured, else after each edit."""
    return "end" if "end" in summary["results"] else "edit"


def brief_table(summary: Mapping[str, Any]) -> Group:
    """The summary of a run in at most ten rows, with a title and what the words mean.

    Args:
        summary: What `ResultsWriter` writes to `summary.json`.
    """
    moment = last_moment(summary)
    kinds = summary["results"].get(moment, {})
    alone = summary["results"].get("editor", {})
    method = summary["method"]
    many = "" if moment == "edit" else ", after the last edit"
    title = f"{name_of(method)} on {method['model']}, {summary['data']['name']}, regime {method['regime']}{many}"
    table = Table(box=box.SIMPLE_HEAD)
    table.padding, table.pad_edge, table.show_edge = (0, 1, 0, 0), False, False
    table.add_column("probe", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    columns = ["before", *([method["editor"]] if alone else []), f"with {method['method']}" if alone else "after"]
    for column in [*columns, "95 % interval", *([] if alone else ["probes"])]:
        table.add_column(column, justify="right", no_wrap=True)
    last = ""
    for name, metric, cell, editor in _lines(kinds, alone):
        cells = [cell.get("before"), *([editor.get("after")] if alone else []), cell.get("after")]
        more = [] if alone else [str(cell.get("n_probes", ""))]
        table.add_row("" if name == last else name, metric, *map(number, cells), interval(cell.get("ci")), *more)
        last = name
    return Group(Text(title, style="italic"), table, Text(CAPTION, style="dim"))


def _lines(kinds: Mapping[str, Any], alone: Mapping[str, Any]) -> Iterator[tuple[str, str, Cell, Cell]]:
    """Title of a kind, metric, its cell, and that of the editor alone."""
    for kind, metric in MAIN:
        if metric in kinds.get(kind, {}):
            yield TITLES.get(kind, kind), metric, kinds[kind][metric], alone.get(kind, {}).get(metric, {})
    yield from _others(kinds, alone)
    if "success" in kinds.get("score", {}):
        yield "score", "success", kinds["score"]["success"], alone.get("score", {}).get("success", {})


def _others(kinds: Mapping[str, Any], alone: Mapping[str, Any]) -> Iterator[tuple[str, str, Cell, Cell]]:
    """The kinds that have no line of their own: their mean, and the lowest of them."""
    known = {*SCORED, *INVARIANT, "portability", "score", "negated"}  # negated: what else is true, nobody need say
    others = {
        kind: cells["exact"]
        for kind, cells in kinds.items()
        if kind not in known and "." not in kind and "exact" in cells and "choice" not in cells  # a.b: part of a
    }
    others = {kind: cell for kind, cell in others.items() if cell["after"] is not None}
    if not others:
        return
    lowest = min(others, key=lambda kind: others[kind]["after"])
    editors = {kind: alone.get(kind, {}).get("exact", {}) for kind in others}
    if len(others) > 1:
        mean = {side: _mean([cell[side] for cell in others.values()]) for side in ("before", "after")}
        editor = {"after": _mean([cell.get("after") for cell in editors.values()])}
        yield f"{len(others)} other kinds", "exact, mean", mean, editor
    name = lowest.replace("_", " ")
    yield (f"lowest: {name}" if len(others) > 1 else name), "exact", others[lowest], editors[lowest]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
