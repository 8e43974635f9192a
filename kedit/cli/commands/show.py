"""`kedit show RUN [CASE]`: what the model said before an edit and says after it, record by record."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import islice
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from kedit.cli.options.which_run import NAMES, run_folder, some
from kedit.errors import KeditError, shown
from kedit.model.stored_tokenizer import stored_decoder
from kedit.results.costs import COSTS, costs_of
from kedit.results.curve import curve_table
from kedit.results.record_view import LEGEND, figures, record_view, request_line, works
from kedit.results.robustness import robustness_table, summary_rows
from kedit.results.rows import edits_of
from kedit.results.run_results import RunResults
from kedit.results.sentences import Decode
from kedit.results.stored_run import StoredRun
from kedit.results.tables import MEASURED_AT, name_of, summary_table
from kedit.runtime.folder_name import folder_name
from kedit.runtime.run_folder import RESULTS

log = logging.getLogger(__name__)

ABOUT = """\
What the model said before an edit and says after it, record by record; of one record also the figures of its edit."""
LAST = ("end", "edit")  # moments that are shown where none is named
RESAMPLES = 2000

Row = dict[str, Any]


def show(words: list[str]) -> None:
    """Print a run, or a record of it.

    Args:
        words: What stands after `kedit show`.

    Raises:
        KeditError: There is no such run, record, kind or moment, or options that exclude each other.
    """
    args = _arguments(words)
    run = StoredRun(run_folder(args.run))
    console = Console(highlight=False)
    console.print(_header(run))
    if args.table:
        _tables(console, run)
    elif args.case is not None:
        _case(console, run, args)
    else:
        _records(console, run, args)
    if run.damaged:
        lines = ", ".join(map(str, run.damaged[:NAMES])) + (", .." if len(run.damaged) > NAMES else "")
        log.warning("%s: left out, as damaged or unfinished: line %s", run.folder / RESULTS, lines)


def _arguments(words: list[str]) -> Any:
    parser = ArgumentParser(prog="kedit show", exit_on_error=False, description=ABOUT)
    run = "Folder of a run, or its name in ./runs; a task of a sweep is one too."
    parser.add_argument("run", type=str | None, nargs="?", default=None, help=run)
    case = "A record by its case id: all of it, with figures, time and delta. Without it, every record in short."
    parser.add_argument("case", type=str | None, nargs="?", default=None, help=case)
    parser.add_argument("--kind", type=str | None, default=None, help="Only probes of this kind, e.g. paraphrase.")
    failed = "Only records whose edited prompt (or, with --kind, a probe of it) did not come out as it should."
    parser.add_argument("--failed", action="store_true", help=failed)
    parser.add_argument("--limit", type=int | None, default=None, help="So many records at most; null: all.")
    at = "Moment: edit (after each edit), end, editor (the editor alone), at_10, ...; null: the last."
    parser.add_argument("--at", type=str | None, default=None, help=at)
    table = "Instead of records, every kind of probe and metric in a table, with intervals."
    parser.add_argument("--table", action="store_true", help=table)
    args = parser.parse_args(words)
    if args.limit is not None and args.limit < 1:
        raise KeditError(f"limit: {args.limit} is not 1 or more")
    of_records = [name for name in ("case", "kind", "limit", "at") if getattr(args, name) is not None]
    of_records += ["failed"] if args.failed else []
    if args.table and of_records:
        raise KeditError(f"table: is of the whole run; leave out {', '.join(of_records)}")
    if args.case is not None and (args.failed or args.limit is not None):
        raise KeditError("case: one record is shown whole; leave out --failed and --limit")
    return args


def _header(run: StoredRun) -> Text:
    method, data = run.about["method"], run.about["data"]
    made = run.about.get("provenance", {})
    kedit = f"kedit {made.get('kedit', '?')}" + (f", commit {made['commit']}" if made.get("commit") else "")
    failed = len(run.about.get("failed", {}))
    state = f"{data['records']} records" + (f", {failed} not edited" if failed else "")
    if not run.finished:
        state += "; not finished: what it has measured so far"
    return Text(
        f"{name_of(method)} on {method['model']}, {data['name']}, regime {method['regime']}, seed {method['seed']}\n"
        f"{state}; {run.about.get('written', '?')}, {kedit}\n{run.folder}",
        style="bold",
    )


def _tables(console: Console, run: StoredRun) -> None:
    """Every figure of a run; of an unfinished one, of the rows that there are."""
    about = run.about
    if not run.finished:
        found = RunResults.of(run.rows(), RESAMPLES)
        about = about | {"results": found.moments, "failed": found.failed, "curve": found.curve}
    if about["data"].get("queries") is not None and (lines := summary_rows(run.rows(), RESAMPLES)):
        console.print(robustness_table(lines))
    console.print(summary_table(about))
    if about.get("curve"):
        console.print(curve_table(about["curve"]))


def _records(console: Console, run: StoredRun, args: Any) -> None:
    """The records at one moment, in short, as they are read."""
    moments, kinds = _known(run)
    if not moments:
        console.print("no record has been measured yet")
        return
    moment = _moment(moments, args.at)
    _check_kind(args.kind, kinds)
    decode = _decoder(console, run)
    chosen = (row for row in run.rows() if row["measured_at"] == moment and _asked_for(row, args))
    count = 0
    for row in islice(chosen, args.limit):
        count += 1
        console.print(Rule(Text(row["case_id"]), align="left"))
        console.print(request_line(row))
        console.print(record_view(row, args.kind, decode))
    left = sum(1 for _ in chosen)
    console.print(Rule())
    if not count:
        console.print("no such record" if not args.failed else "none: all came out as they should")
        return
    more = f"; {left} more (--limit)" if left else ""
    console.print(f"{count} shown, {_named(moment)}{more}", markup=False)
    console.print(LEGEND, markup=False)


def _case(console: Console, run: StoredRun, args: Any) -> None:
    """One record whole: at every moment, with what its edit was and cost."""
    rows: list[Row] = []
    ids: dict[str, None] = {}
    for row in run.rows():
        ids[row["case_id"]] = None
        if row["case_id"] == args.case:
            rows.append(row)
    if not rows:
        close = get_close_matches(args.case, ids, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {some(list(ids))}" if ids else "it has none yet"
        raise KeditError(f"case: {run.folder} has no record {shown(args.case)}; {hint}")
    if args.at is not None:
        moment = _moment({row["measured_at"]: None for row in rows}, args.at)
        rows = [row for row in rows if row["measured_at"] == moment]
    else:
        rows = [row for row in rows if edits_of(row["measured_at"]) is None] or rows[-1:]  # without the curve's
    _check_kind(args.kind, {probe["kind"]: None for row in rows for probe in row["probes"]})
    decode = _decoder(console, run)
    console.print(Rule(Text(args.case), align="left"))
    console.print(request_line(rows[0]))
    for row in rows:
        at = row["measured_at"]
        console.print(Rule(Text(_named(at)), align="left", style="dim"))
        console.print(record_view(row, args.kind, decode, whole=True))
        console.print(Text.assemble("edit: ", figures(row)))
    console.print(Rule())
    for line in _about_edit(run, rows[-1]):
        console.print(line, soft_wrap=True, markup=False)
    console.print(LEGEND, markup=False)


def _decoder(console: Console, run: StoredRun) -> Decode | None:
    """What reads the tokens of a run, where the tokenizer of its model is at hand; says where it is not."""
    model = run.about["method"]["model"]
    decode = stored_decoder(model)
    if decode is None:
        console.print(f"? stands for tokens that cannot be read: no tokenizer of {model} is here", markup=False)
    return decode


def _about_edit(run: StoredRun, row: Row) -> Iterator[str]:
    """What an edit cost, and where its delta is."""
    try:
        if (cost := costs_of(run.folder).get(row["case_id"])) is not None:
            size = cost["delta_bytes"]
            kept = "" if size is None else f"; its delta has {size:.0f} bytes"
            yield f"time: {cost['seconds']:.2f} s, {cost['cpu_seconds']:.2f} CPU s{kept}"
    except (KeditError, LookupError, TypeError, ValueError):
        yield f"time: unknown, {run.folder / COSTS} is damaged"
    own = run.folder / "deltas" / folder_name(row["case_id"])
    batch = run.folder / "deltas" / f"batch-{row['batch']}"
    places = ((own, ""), (batch, " (with the rest of its batch)"), (run.folder / "delta", " (with all edits)"))
    for folder, what in places:
        if folder.is_dir():
            yield f"delta: {folder}{what}"
            return
    yield "delta: none is kept"


def _named(moment: str) -> str:
    """A moment in words."""
    return MEASURED_AT.get(moment) or f"measured after {edits_of(moment)} edits"


def _known(run: StoredRun) -> tuple[dict[str, None], dict[str, None]]:
    """The moments and the kinds of probe of a run, in order."""
    moments: dict[str, None] = {}
    kinds: dict[str, None] = {}
    for row in run.rows():
        moments[row["measured_at"]] = None
        kinds |= {probe["kind"]: None for probe in row["probes"]}
    return moments, kinds


def _moment(moments: Iterable[str], asked: str | None) -> str:
    known = list(moments)
    if asked is None:
        return next((moment for moment in LAST if moment in known), known[-1])
    if asked not in known:
        raise KeditError(f"at: nothing was measured at {shown(asked)}; there are {', '.join(known)}")
    return asked


def _check_kind(kind: str | None, kinds: Iterable[str]) -> None:
    known = list(kinds)
    if kind is not None and kind not in known:
        close = get_close_matches(kind, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise KeditError(f"kind: there is no kind of probe {shown(kind)} in this run; {hint}")


def _asked_for(row: Row, args: Any) -> bool:
    if args.failed:
        return not works(row, args.kind)
    return args.kind is None or any(probe["kind"] == args.kind for probe in row["probes"])
