"""A report's folder: report.html, report.md, and every table as CSV and LaTeX."""

from __future__ import annotations

from pathlib import Path

from kedit.report.grid import Grid
from kedit.report.grid_text import as_csv, as_latex, as_markdown, markdown_text
from kedit.report.page import Page, html
from kedit.runtime.files import make_folder, write_text
from kedit.sweeps.compare import Comparison
from kedit.sweeps.compare_tables import as_csv as comparison_csv

HTML, MARKDOWN, ALL = "report.html", "report.md", "compare.csv"
TABLES = "tables"


def write_report(page: Page, result: Comparison, folder: Path) -> int:
    """Write everything.

    Args:
        page: The page.
        result: The comparison that it shows, for `compare.csv`: every digit of every number.
        folder: Is made where it is not there.

    Returns:
        Bytes of the page.

    Raises:
        CannotWrite: The folder cannot be written.
    """
    make_folder(folder, "out")
    make_folder(folder / TABLES, "out")
    text = html(page)
    write_text(folder / HTML, text)
    write_text(folder / MARKDOWN, markdown(page))
    write_text(folder / ALL, comparison_csv(result))
    for grid, said in page.grids:
        write_text(folder / TABLES / f"{grid.name}.csv", as_csv(grid))
        write_text(folder / TABLES / f"{grid.name}.tex", as_latex(grid, said))
    return len(text.encode())


def markdown(page: Page) -> str:
    """The page's tables and notes."""
    parts = [f"# {markdown_text(page.title)}", markdown_text(page.subtitle)]
    parts.append("\n".join(f"- {markdown_text(term)}: {markdown_text(value)}" for term, value in page.facts))
    for table in page.tables:
        parts += [f"## {markdown_text(table.title)}", markdown_text(table.whole)]
        parts += [as_markdown(part) for part in table.parts]
    for section in page.sections:
        grids: list[Grid] = [*section.grids, *section.folded]
        if grids:
            parts += [f"## {markdown_text(section.title)}", *(as_markdown(part) for part in grids)]
    parts += ["## How to read the numbers", *_notes(page.legend)]
    parts += ["## What is missing", *_notes(page.notes)] if page.notes else []
    parts.append("## Runs")
    parts += [as_markdown(part) for part in (*([page.differing] if page.differing else []), *page.runs)]
    return "\n\n".join(parts) + "\n"


def _notes(lines: tuple[str, ...]) -> list[str]:
    return ["\n".join(f"- {markdown_text(line)}" for line in lines)] if lines else []
