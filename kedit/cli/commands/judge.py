"""`kedit judge RUN`: the free answers of a run, judged by a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import logging
import os
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.text import Text

from kedit.cli.options.positionals import positionals_first
from kedit.cli.options.which_run import NAMES, run_folder, some
from kedit.errors import KeditError, at_least, shown, within
from kedit.judge.agreement import disagreements, figures_table, summary_rows
from kedit.judge.answers import SIDES, Answer, answers_of, chosen_field, fields_of
from kedit.judge.client import Endpoint
from kedit.judge.file import LINES, REPORT, JudgeFile
from kedit.judge.prompt import SYSTEM
from kedit.judge.run import judge_answers
from kedit.results.stored_run import StoredRun
from kedit.runtime.progress import stage
from kedit.runtime.run_folder import RESULTS

log = logging.getLogger(__name__)

USAGE = "kedit judge RUN --url URL --model NAME [--key VARIABLE] [--answers wild] [--at MOMENT] [--limit N]"
ABOUT = """\
The free answers of a run, judged by a language model behind an OpenAI-compatible endpoint, beside exact match. Verdicts
are kept in the run's folder as they come (judge.jsonl); the same command goes on where it was stopped.
"""
KEY = "OPENAI_API_KEY"
LOCAL = ("localhost", "127.0.0.1", "::1")
MOST = 256  # requests at once


def judge(words: list[str]) -> None:
    """Judge, print the table and the disagreements, and keep all in the run's folder.

    Args:
        words: What stands after the command.

    Raises:
        KeditError: No such run, no free answers in it, or an endpoint that cannot be used.
    """
    args = _arguments(words)
    run = StoredRun(run_folder(args.run))
    for name in ("url", "model"):
        if not (getattr(args, name) or "").strip():
            raise KeditError(f"{name}: missing; {USAGE}")
    at_least("limit", args.limit, 1)
    within("workers", args.workers, 1, MOST)
    within("retries", args.retries, 0, 100)
    within("timeout", args.timeout, 0.1, 3600)
    at_least("tokens", args.tokens, 1)
    at_least("show", args.show, 0)
    key = _key(args.key)
    endpoint = Endpoint(args.url, args.model, key, args.timeout, args.retries, args.tokens)
    address = urlsplit(endpoint.shown_url)
    if key is not None and address.scheme == "http" and address.hostname not in LOCAL:
        log.warning("url: the key goes to %s without encryption; https keeps it secret", address.hostname)
    field, moment, answers = _answers(run, args)
    settings = {"model": args.model, "prompt": SYSTEM, "temperature": 0, "url": endpoint.shown_url}
    file = JudgeFile(run.folder, settings)
    file.begin()
    try:
        with stage(f"{args.model} judges") as progress:
            asked = judge_answers(endpoint, answers, file, args.workers, progress)
    finally:
        lines = summary_rows(answers, file.verdicts)
        differ = disagreements(answers, file.verdicts)
        if lines:
            about = {"answers": field, "measured_at": moment, "max_tokens": args.tokens}
            file.finish({**about, "disagreements": len(differ), "figures": lines})
    console = Console(highlight=False)
    console.print(figures_table(lines))
    _differing(console, differ, args.show)
    console.print(
        f"{len(answers)} {field} answers of {moment}, {asked} asked for now; {run.folder / LINES}, {REPORT}",
        soft_wrap=True,
        markup=False,
    )


def _answers(run: StoredRun, args: Any) -> tuple[str, str, list[Answer]]:
    """Which field and moment are judged, and the answers."""
    rows = list(run.rows())
    if run.damaged:
        log.warning("%s: left out, as damaged or unfinished: line %s", run.folder / RESULTS, some(_texts(run.damaged)))
    field = chosen_field(fields_of(rows), args.answers)
    moments = list(
        dict.fromkeys(row["measured_at"] for row in rows if answers_of([row], field, row["measured_at"], SIDES))
    )
    if args.at is not None and args.at not in moments:
        raise KeditError(f"at: no {field} answers of {shown(args.at, 40)}; there are those of {', '.join(moments)}")
    moment = args.at or next(name for name in ("end", "edit", moments[-1]) if name in moments)
    kinds = [name for word in args.kind or [] for name in word.replace(",", " ").split()]
    sides = SIDES if args.side == "both" else (args.side,)
    answers = answers_of(rows, field, moment, sides, kinds)
    if not answers:
        known = sorted({answer.kind for answer in answers_of(rows, field, moment, SIDES)})
        raise KeditError(f"kind: no {field} answers of {some(kinds)}; there are those of {', '.join(known)}")
    cases = list(dict.fromkeys(answer.case_id for answer in answers))[: args.limit]
    return field, moment, [answer for answer in answers if answer.case_id in set(cases)]


def _key(variable: str | None) -> str | None:
    """The key in an environment variable. A word that is no name of one may be a key: it is not repeated."""
    if variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):
        raise KeditError(
            f"key: expects the name of an environment variable, such as {KEY}, in capital letters; never the key itself"
        )
    value = os.environ.get(variable or KEY, "").strip()
    if variable is not None and not value:
        raise KeditError(f"key: the environment variable {variable} is not set: export {variable}=...")
    if any(not c.isprintable() or ord(c) > 126 for c in value):
        raise KeditError(f"key: the value of {variable or KEY} has characters that no key has")
    return value or None


def _differing(console: Console, found: list[Any], most: int) -> None:
    """The answers on which the two differ."""
    if not found or not most:
        return
    console.print(f"The judge and exact match differ on {len(found)} answers:")
    for answer, verdict in found[:most]:
        said = (
            f"exact match {'yes' if answer.exact_match else 'no'}, judge {verdict.verdict}: {shown(verdict.why, 200)}"
        )
        line = Text.assemble(
            f"- {answer.case_id}, {answer.kind}, {answer.side}: {shown(answer.text, 100)} -> ",
            (shown(answer.said, 100), "bold"),
            f", expected {shown(answer.answer, 60)}; {said}",
        )
        console.print(line, soft_wrap=True)
    if len(found) > most:
        console.print(f"and {len(found) - most} more: --show N, or {LINES}")


def _texts(numbers: list[int]) -> list[str]:
    return [str(number) for number in numbers]


def _arguments(words: list[str]) -> Any:
    parser = ArgumentParser(prog="kedit judge", usage=USAGE, exit_on_error=False, description=ABOUT)
    run = "Folder of a run, or its name in ./runs."
    parser.add_argument("run", type=str | None, nargs="?", default=None, metavar="RUN", help=run)
    url = "Address of the API, e.g. http://localhost:8000/v1."
    parser.add_argument("--url", type=str | None, default=None, help=url)
    model = "The judge: the name of a model there."
    parser.add_argument("--model", type=str | None, default=None, metavar="NAME", help=model)
    key = f"Environment variable that holds the key; null: {KEY}, where it is set. A local server may need none."
    parser.add_argument("--key", type=str | None, default=None, metavar="VARIABLE", help=key)
    answers = "Which free answers: wild, generated, port; null: the first of these that the run has."
    parser.add_argument("--answers", type=str | None, default=None, metavar="NAME", help=answers)
    at = "Moment: edit (after each edit), end, at_10, ...; null: the last."
    parser.add_argument("--at", type=str | None, default=None, metavar="MOMENT", help=at)
    parser.add_argument(
        "--kind", action="append", type=str, help="Only probes of this kind; may be given several times."
    )
    side = "Answers before the edit, after it, or both."
    parser.add_argument("--side", type=Literal["before", "after", "both"], default="both", help=side)
    limit = "The first so many records; null: all."
    parser.add_argument("--limit", type=int | None, default=None, metavar="N", help=limit)
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="Requests that are under way at once.")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="Seconds that a request may take.")
    retries = "Further tries after a request that failed, with growing pauses."
    parser.add_argument("--retries", type=int, default=5, metavar="N", help=retries)
    tokens = "Tokens of a reply at most; null: the server's own bound."
    parser.add_argument("--tokens", type=int | None, default=512, metavar="N", help=tokens)
    show = "So many answers on which the judge and exact match differ are printed."
    parser.add_argument("--show", type=int, default=NAMES, metavar="N", help=show)
    return parser.parse_args(positionals_first(parser, words))
