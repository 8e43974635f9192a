"""Tables of a report as Markdown, CSV and LaTeX. Whatever stands in a cell stays a cell: everything is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kedit.report.grid import Entry, Grid
from kedit.runtime.files import csv_text
from kedit.text.lines import one_line

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~$&!])")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "−": r"$-$", "→": r"$\rightarrow$",
    "▲": r"$\uparrow$", "▼": r"$\downarrow$", "–": "--",
}  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def markdown_text(text: str) -> str:
    """A text on one line, none of which Markdown or HTML takes for its own."""
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def latex_text(text: str) -> str:
    """A text on one line, none of which LaTeX takes for its own."""
    return "".join(_LATEX.get(c, c) for c in one_line(text))


def as_markdown(grid: Grid, level: int = 3) -> str:
    """A heading, the table, and its notes.

    Args:
        grid: The table.
        level: Of the heading.
    """
    head = [_head(column.name, column.unit) for column in grid.columns]
    lines = [[markdown_text(cell) for cell in head], ["---" if column.text else "---:" for column in grid.columns]]
    for row in grid.rows:
        lines.append([_markdown_cell(entry) for entry in row])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    parts = [f"{'#' * level} {markdown_text(grid.title)}", table]
    if grid.notes:
        parts.append("\n".join(f"- {markdown_text(note)}" for note in grid.notes))
    return "\n\n".join(parts)


def as_csv(grid: Grid) -> str:
    """A row per row: numbers with every digit, their intervals in columns `NAME low` and `NAME high`.

    A text that a spreadsheet would take for a formula has an apostrophe in front.
    """
    columns: list[str] = []
    names = _distinct([_head(column.whole or column.name, column.unit) for column in grid.columns])
    ranges = [any(row[at].low is not None for row in grid.rows) for at in range(len(names))]
    for name, ranged in zip(names, ranges, strict=True):
        columns += [name, f"{name} low", f"{name} high"] if ranged else [name]
    rows = []
    for row in grid.rows:
        cells: dict[str, object] = {}
        for name, ranged, entry in zip(names, ranges, row, strict=True):
            cells[name] = _plain(entry.text) if entry.value is None else entry.value
            if ranged:
                cells[f"{name} low"], cells[f"{name} high"] = entry.low, entry.high
        rows.append(cells)
    return csv_text(rows, columns)


def as_latex(grid: Grid, said: str = "") -> str:
    """A `table` with booktabs' rules; intervals are small behind their numbers.

    Args:
        grid: The table.
        said: What its caption says behind the title: of which data and protocol it is.
    """
    shape = "".join("l" if column.text else "r" for column in grid.columns)
    head = " & ".join(latex_text(_head(column.name, column.unit)) for column in grid.columns)
    rows = [" & ".join(_latex_cell(entry) for entry in row) + r" \\" for row in grid.rows]
    notes = ["\\par\\smallskip\\footnotesize " + latex_text(note) for note in grid.notes]
    return "\n".join(
        [
            "% \\usepackage{booktabs}",
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{latex_text(f'{grid.title}: {said}' if said else grid.title)}}}",
            f"\\label{{tab:{grid.name}}}",
            f"\\begin{{tabular}}{{{shape}}}",
            "\\toprule",
            head + r" \\",
            "\\midrule",
            *rows,
            "\\bottomrule",
            "\\end{tabular}",
            *notes,
            "\\end{table}",
            "",
        ]
    )


def _head(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, those that come again with a number behind them."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return found


def _plain(text: str) -> str:
    line = one_line(text)
    return f"'{line}" if line.startswith(_FORMULA) else line


def _markdown_cell(entry: Entry) -> str:
    text = markdown_text(entry.text) + (r"\*" if entry.star else "")
    text = f"**{text}**" if entry.best else text
    return f"{text} {markdown_text(entry.small)}".strip()


def _latex_cell(entry: Entry) -> str:
    text = latex_text(entry.text)
    if entry.best:
        text = f"\\textbf{{{text}}}"
    if entry.star:
        text += "$^{*}$"
    return f"{text} {{\\scriptsize {latex_text(entry.small)}}}" if entry.small else text
