"""`kedit compare`: arms of a sweep, or runs, side by side: one table, differences to an arm, a trade-off figure."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from kedit.cli.options.which_arms import WHICH, runs_named
from kedit.errors import KeditError, at_least, within
from kedit.results.intervals import RESAMPLES
from kedit.runtime.files import make_folder, write_figure, write_text
from kedit.runtime.option_values import check_path
from kedit.sweeps.compare import Comparison
from kedit.sweeps.compare import compare as compared
from kedit.sweeps.compare_tables import as_csv, as_markdown, heading, legend, tables, titled
from kedit.sweeps.curve_figure import curve_figures
from kedit.sweeps.measures import SETS, measures_of
from kedit.sweeps.tradeoff_figure import tradeoff_figure

log = logging.getLogger(__name__)

ABOUT = """\
Arms side by side, an arm per row: kedit compare slurm/sweeps/smollm2.yaml --against rome_smollm2 --paired --seeds.
An arm is a setting of a sweep, or a run. What is not done is named below the table.
"""


def compare(words: list[str]) -> None:
    """Print the table, or write it with its figure.

    Args:
        words: What stands after the command.

    Raises:
        KeditError: No such sweep, run or arm, no results, one arm alone, nothing to pair, or an unwritable folder.
    """
    args = _arguments(words)
    if args.paired and args.against is None:
        raise KeditError("paired: differences to which arm? Give --against ARM")
    within("resamples", args.resamples, 1, RESAMPLES)
    measures = measures_of(args.metrics)
    runs = runs_named(args.sweep, args.runs, args.seeds, "compare")
    at_least("first", args.first, 1)
    result = compared(runs, measures, args.against, args.paired, args.resamples, args.first)
    if args.out is not None:
        check_path("out", args.out)
        _write(result, Path(args.out))
    if args.format == "terminal":
        _print(result, Console(highlight=False))
        return
    if args.format == "csv":
        for note in result.notes:
            log.info("%s", note)
    text = {"markdown": as_markdown, "csv": as_csv}[args.format](result)
    Console(soft_wrap=True, highlight=False).print(text, end="", markup=False)


def _arguments(words: list[str]) -> Any:
    parser = ArgumentParser(prog="kedit compare", exit_on_error=False, description=ABOUT)
    parser.add_argument("sweep", type=str, nargs="*", default=[], help=WHICH["compare"])
    against = "The arm that the others are compared with, as the table calls it (in quotes); null: no differences."
    parser.add_argument("--against", type=str | None, default=None, help=against)
    paired = "Differences record by record, over the records (and seeds) that both arms have: narrower intervals."
    parser.add_argument("--paired", action="store_true", help=paired)
    seeds = "Put the seeds of a setting together: mean and standard deviation over them. Without it each is an arm."
    parser.add_argument("--seeds", action="store_true", help=seeds)
    sets = f"Columns: {', '.join(SETS)} (most papers', PAC's, REP's, of all methods), or names: efficacy/exact,fluency."
    parser.add_argument("--metrics", type=str, default="main", help=sets)
    first = "Only the first N records that each run edited: how much is left of them after more edits; null: all."
    parser.add_argument("--first", type=int | None, default=None, metavar="N", help=first)
    formats = "What is printed. csv: with every digit, and the values of every seed."
    parser.add_argument("--format", type=Literal["terminal", "markdown", "csv"], default="terminal", help=formats)
    out = "Folder for compare.md, compare.csv and figures: tradeoff.png, curve.png over edits; null: none."
    parser.add_argument("--out", type=str | None, default=None, help=out)
    runs = "Folder of the sweep's results, where kedit sweep was given --out; null: runs/sweeps/NAME."
    parser.add_argument("--runs", type=str | None, default=None, help=runs)
    parser.add_argument("--resamples", type=int, default=2000, help="Bootstrap resamples behind the intervals.")
    return parser.parse_args(words)


def _write(result: Comparison, folder: Path) -> None:
    """Markdown, CSV, and a figure for each table that has one."""
    make_folder(folder, "out")
    names: list[str | None] = []
    for nth, table in enumerate(result.tables, 1):
        figure = tradeoff_figure(table, titled(table))
        name = "tradeoff.png" if len(result.tables) == 1 else f"tradeoff_{nth}.png"
        names.append(None if figure is None else name)
        if figure is not None:
            write_figure(folder / name, figure)
    curves = curve_figures(result)
    more = [f"curve{'' if len(curves) == 1 else f'_{nth}'}.png" for nth in range(1, len(curves) + 1)]
    for name, figure in zip(more, curves, strict=True):
        write_figure(folder / name, figure)
    write_text(folder / "compare.md", as_markdown(result, names, more))
    write_text(folder / "compare.csv", as_csv(result))
    files = ["compare.md", "compare.csv", *(name for name in names if name is not None), *more]
    log.info("%s; written to %s: %s", heading(result), folder, ", ".join(files))


def _print(result: Comparison, console: Console) -> None:
    for title, table in tables(result, console.width):
        if title:
            console.print(title, style="bold", markup=False)
        console.print(table)
    for line in [*legend(result), heading(result), *(f"  {note}" for note in result.notes)]:
        console.print(line, markup=False)
