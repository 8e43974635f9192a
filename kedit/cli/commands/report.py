"""`kedit report`: one page about runs that stands by itself, and its tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from kedit.cli.options.which_arms import WHICH, runs_named, sweep_named
from kedit.errors import KeditError, at_least, within
from kedit.model.stored_tokenizer import stored_decoder
from kedit.report.content import page_of
from kedit.report.measure_tables import default_measures
from kedit.report.page import PAGE_BYTES
from kedit.report.writing import ALL, HTML, MARKDOWN, TABLES, write_report
from kedit.results.intervals import RESAMPLES
from kedit.results.stored_run import is_run
from kedit.runtime.files import check_writable
from kedit.runtime.option_values import check_path, check_text
from kedit.runtime.run_folder import finished
from kedit.sweeps.compare import compare
from kedit.sweeps.measures import SETS, measures_of

NOTES = 8  # that are printed

log = logging.getLogger(__name__)

ABOUT = """\
One page to read and to send: kedit report slurm/sweeps/smollm2.yaml --against rome_smollm2 --seeds --out report.
Tables with intervals and ranks, figures, costs, configs, and what the model said, record by record. What is not done is
named on it.
"""


def report(words: list[str]) -> None:
    """Write the page and its tables.

    Args:
        words: What stands after the command.

    Raises:
        KeditError: No such sweep, run or arm, nothing is finished, or an unwritable folder.
    """
    args = _arguments(words)
    within("resamples", args.resamples, 1, RESAMPLES)
    at_least("first", args.first, 1)
    at_least("records", args.records, 0)
    if args.title is not None:
        check_text("title", args.title)
    check_path("out", args.out)
    chosen = None if args.metrics is None else measures_of(args.metrics)
    names, unfinished = _finished(args.runs_or_sweep)
    runs = runs_named(names, args.runs, args.seeds, "report")
    runs = replace(runs, notes=(*runs.notes, *unfinished))
    measures = chosen if chosen is not None else default_measures(runs.runs) if runs.runs else measures_of("main")
    result = compare(runs, measures, args.against, args.against is not None, args.resamples, args.first, least=1)
    check_writable(Path(args.out), "out")
    page = page_of(runs, result, cache(stored_decoder), args.title, args.records, args.resamples)
    size = write_report(page, result, Path(args.out))
    for note in page.notes[:NOTES]:
        log.info("%s", note)
    if len(page.notes) > NOTES:
        log.info(".. and %d more notes, on the page", len(page.notes) - NOTES)
    if size > PAGE_BYTES:
        log.warning("%s has %.1f MB; fewer records make it smaller: --records N", HTML, size / 1e6)
    log.info(
        "%s; written to %s: %s (%.2f MB), %s, %s, and each table as CSV and LaTeX in %s/",
        page.subtitle, args.out, HTML, size / 1e6, MARKDOWN, ALL, TABLES,
    )  # fmt: skip


def _finished(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Without the runs that are not finished, and a line for each of those.

    Raises:
        KeditError: None is finished.
    """
    if not names or any("\0" in name for name in names) or (sweep_named(names) and not is_run(Path(names[0]))):
        return list(names), []
    done, unfinished = [], []
    for name in names:
        path = Path(name)
        (unfinished if is_run(path) and not finished(path) else done).append(name)
    if not done:
        raise KeditError(
            f"nothing is finished: {', '.join(unfinished[:8])}\n"
            "kedit show RUN tells how far a run came; --run.resume true goes on with it"
        )
    return done, [f"not finished, left out: {name}" for name in unfinished]


def _arguments(words: list[str]) -> Any:
    parser = ArgumentParser(prog="kedit report", exit_on_error=False, description=ABOUT)
    parser.add_argument("runs_or_sweep", type=str, nargs="*", default=[], metavar="runs", help=WHICH["report"])
    out = "Folder of report.html, report.md, compare.csv and tables/."
    parser.add_argument("--out", type=str, default="report", help=out)
    against = "The arm that the others are compared with, record by record, as the tables call it; null: none."
    parser.add_argument("--against", type=str | None, default=None, help=against)
    seeds = "Put the seeds of a setting together: mean and standard deviation over them. Without it each is an arm."
    parser.add_argument("--seeds", action="store_true", help=seeds)
    sets = f"Columns: {', '.join(SETS)}, or names as kedit compare takes them; null: all that the runs measured."
    parser.add_argument("--metrics", type=str | None, default=None, help=sets)
    first = "Only the first N records that each run edited; null: all."
    parser.add_argument("--first", type=int | None, default=None, metavar="N", help=first)
    records = "Records of each table whose answers are in the page, the first ones; fewer where it would pass 5 MB."
    parser.add_argument("--records", type=int, default=200, metavar="N", help=records)
    title = "Title of the page; null: the name of the sweep."
    parser.add_argument("--title", type=str | None, default=None, help=title)
    runs = "Folder of the sweep's results, where kedit sweep was given --out; null: runs/sweeps/NAME."
    parser.add_argument("--runs", type=str | None, default=None, help=runs)
    parser.add_argument("--resamples", type=int, default=2000, help="Bootstrap resamples behind the intervals.")
    return parser.parse_args(words)
