"""`kedit collect`: one table over the runs of a sweep."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from kedit.cli.commands.sweep import WHICH, open_sweep
from kedit.errors import KeditError
from kedit.runtime.files import make_folder, write_text
from kedit.runtime.option_values import check_path
from kedit.sweeps.collect import Collected, collected
from kedit.sweeps.collect_tables import LEGEND, as_csv, as_markdown, heading, tables
from kedit.sweeps.folder import PLAN

log = logging.getLogger(__name__)

ABOUT = "One table over the finished runs of a sweep; what is not finished is named below it."


def collect(words: list[str], prog: str = "kedit collect") -> None:
    """Print or write the table.

    Args:
        words: What stands after the command.
        prog: The command, for its help.

    Raises:
        KeditError: No such sweep, nothing done yet, or a file that cannot be written.
    """
    args = _arguments(words, prog)
    folder = open_sweep(args.sweep, args.runs)
    if not (folder.path / PLAN).exists():
        raise KeditError(
            f"there are no results in {folder.path}, where kedit sweep {args.sweep} writes them\n"
            f"Where it was given --out DIR: {prog} DIR, or --runs DIR"
        )
    result = collected(folder)
    if args.out is not None:
        check_path("out", args.out)
    if args.out is None and args.format == "terminal":
        _print(result)
        return
    if args.format == "csv":
        for note in result.notes:
            log.info("%s", note)
    text = {"terminal": _text, "markdown": as_markdown, "csv": as_csv}[args.format](result)
    if args.out is None:
        Console(soft_wrap=True, highlight=False).print(text, end="", markup=False)
        return
    make_folder(Path(args.out).parent, "out")
    write_text(Path(args.out), text)
    log.info("%s; written: %s", heading(result), args.out)


def _arguments(words: list[str], prog: str) -> Any:
    parser = ArgumentParser(prog=prog, exit_on_error=False, description=ABOUT)
    parser.add_argument("sweep", type=str | None, nargs="?", default=None, help=WHICH)
    formats = "terminal and markdown: mean and spread over seeds; csv: every run by itself, with every digit."
    parser.add_argument("--format", type=Literal["terminal", "markdown", "csv"], default="terminal", help=formats)
    parser.add_argument("--out", type=str | None, default=None, help="File to write to; null: standard output.")
    runs = "Folder of the sweep's results, where kedit sweep was given --out; null: runs/sweeps/NAME."
    parser.add_argument("--runs", type=str | None, default=None, help=runs)
    return parser.parse_args(words)


def _print(result: Collected, console: Console | None = None) -> None:
    console = Console(highlight=False) if console is None else console
    for title, table in tables(result):
        console.print(title, style="bold", markup=False)
        console.print(table)
    for line in [*(LEGEND if result.groups else ()), heading(result), *(f"  {note}" for note in result.notes)]:
        console.print(line, markup=False)


def _text(result: Collected) -> str:
    text = io.StringIO()
    _print(result, Console(file=text, highlight=False, width=100))
    return text.getvalue()
