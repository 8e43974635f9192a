"""`kedit data check`: what a file of facts holds, as kedit reads it, before any model is loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kedit.cli.commands.ls import classes
from kedit.cli.options.positionals import positionals_first
from kedit.data.check import check
from kedit.data.choosing import REASONS
from kedit.data.readers.any_format import FORMATS, format_of
from kedit.data.readers.parse import read_items
from kedit.errors import KeditError, shown
from kedit.text.lines import cut_middle, one_line

USAGE = """\
usage: kedit data check FILE [--format NAME] [--json]

Says which format a file of facts has, how many records and probes are in it, what is left out and why, which fields
nobody reads, which facts are edited twice, how the first record is read, and which methods can edit it.
FILE is a .json or .jsonl file, or hf:NAME[:CONFIG][:SPLIT], a data set of the datasets library (NAME: a hub id or a
local folder).
"""
ABOUT = "What a file of facts holds, as kedit reads it."
SOME = 4  # probes of the first record that are shown of each kind
WIDTH = 160  # characters of a text that are shown


def data(words: list[str]) -> None:
    """Run the one command there is.

    Args:
        words: What stands after `kedit data`.

    Raises:
        KeditError: No such command, or a file that cannot be read.
    """
    if not words or words[0] in ("-h", "--help"):
        Console(soft_wrap=True, highlight=False).print(USAGE, end="", markup=False)
        return
    if words[0] != "check":
        raise KeditError(f"kedit data has no command {shown(words[0])}; there is check, as in kedit data check FILE")
    parser = ArgumentParser(prog="kedit data check", exit_on_error=False, description=ABOUT)
    parser.add_argument("file", type=str, help="A .json or .jsonl file, or hf:NAME[:CONFIG][:SPLIT].")
    parser.add_argument("--format", type=str | None, default=None, help=f"Read it as {', '.join(FORMATS)}.")
    parser.add_argument("--json", action="store_true", help="As JSON.")
    given = words[1:]
    if not [word for word in given if not word.startswith("-")]:
        given = [*given, "--help"] if {"-h", "--help"} & set(given) else given
        if "--help" not in given:
            raise KeditError("which file? kedit data check FILE, as in kedit data check my_facts.jsonl")
    args = parser.parse_args(positionals_first(parser, given))
    found = checked(args.file, args.format)
    if args.json:
        Console(soft_wrap=True).out(json.dumps(found, indent=2, ensure_ascii=False), highlight=False)
    else:
        _say(found, Console(highlight=False))


def checked(path: str, name: str | None) -> dict[str, Any]:
    """All that is said of a file, JSON-able: `kedit.data.check.check`, and the format, notes and methods.

    Args:
        path: The file.
        name: Its format; None finds it out.

    Raises:
        KeditError: There is no such format, or the file cannot be read in it.
    """
    from kedit import data as datasets

    if name is not None and (alike := {known.lower(): known for known in FORMATS}).get(name.lower()) is None:
        raise KeditError(f"format: there is no {shown(name)}; there are {', '.join(alike.values())}")
    chosen = format_of(next(read_items(path)).raw) if name is None else alike[name.lower()]
    try:
        with _heard() as notes:
            facts = check(data := getattr(datasets, chosen)(path), path)
    except KeditError as error:
        hint = "" if name is not None else f"; it was taken for {chosen}, --format names another"
        raise KeditError(f"{error}{hint}") from None
    return {
        "file": path,
        "format": chosen,
        "name": data.name,
        **facts,
        "notes": [note.removeprefix(f"{path}: ").removeprefix(f"{data.name}: ") for note in notes],
        "methods": _methods(facts),
    }


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Inside, what readers would log is listed instead."""
    logger, lines = logging.getLogger("kedit.data"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def _methods(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The methods that can edit every record, those that cannot, and why."""
    can, lack = [], {"subject": [], "true target": []}
    without = {
        "subject": facts["records"] - facts["subjects"],
        "true target": facts["records"] - facts["true_targets"],
    }
    for name, method in classes():
        wraps = isinstance(method.regimes, property)
        subject = "subject" in method.card.needs or (method.needs_subject and not wraps)
        needs = {"subject": subject, "true target": "true target" in method.card.needs}
        if missing := next((need for need in lack if needs[need] and without[need]), None):
            lack[missing].append(name)
        else:
            can.append(name)
    reasons = {need: {"methods": names, "records_without": without[need]} for need, names in lack.items() if names}
    return {"can": can, "cannot": reasons}


def _say(found: Mapping[str, Any], console: Console) -> None:
    """The facts as a person reads them."""

    def line(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    path, name = found["file"], found["format"]
    line(f"{path}: {name}, as --data {name} --data.path {path} reads it")
    out = [f"{n} {REASONS.get(reason, reason)}" for reason, n in found["left_out"].items()]
    line(
        f"{found['objects']} object{'s' * (found['objects'] != 1)} in the file, {found['records']} "
        f"record{'s' * (found['records'] != 1)} to edit" + (f"; left out: {', '.join(out)}" if out else "")
    )
    console.print(_probe_table(found["probes"]))
    for text in (*_about_targets(found), *_about_facts(found)):
        line(text)
    for note in found["notes"]:
        line(f"note: {note}")
    for text in _about_methods(found["methods"]):
        line(text)
    line("the first record as kedit has it:")
    for text in _first(found["first"]):
        line(f"  {text}")


def _probe_table(probes: Mapping[str, Mapping[str, int]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = {"probes": "probes", "records": "of records", "with_rival": "with a rival"}
    if any(count["with_conditions"] for count in probes.values()):
        names["with_conditions"] = "with conditions"
    table.add_column("kind", no_wrap=True)
    for title in names.values():
        table.add_column(title, justify="right")
    for kind, count in probes.items():
        table.add_row(f"  {kind}" if "." in kind else kind, *(str(count[name]) for name in names))
    return table


def _about_targets(found: Mapping[str, Any]) -> Iterator[str]:
    records, targets = found["records"], found["targets"]
    missing = records - found["subjects"]
    yield "subjects: " + (f"{missing} of {records} requests name none" if missing else "every request names its own")
    missing = records - found["true_targets"]
    yield "true targets: " + (
        f"{missing} of {records} requests have none, so nothing competes there and data.known: true cannot ask for them"
        if missing
        else "every request has one"
    )
    longest = _short(targets["longest"]["target_new"], 60)
    text = (
        f"new targets: {targets['several_words']} of several words, the longest of {targets['most_words']}: {longest}"
    )
    if targets["untrimmed"]:
        text += f"; {targets['untrimmed']} with white space around them, which is removed"
    yield text


def _about_facts(found: Mapping[str, Any]) -> Iterator[str]:
    same, conflicts = found["same_fact"], found["conflicts"]
    if not same["facts"]:
        yield "no fact is edited twice (same subject and relation)"
        return
    yield f"facts edited by several records (same subject and relation): {_counted(same)}"
    yield f"of these, to different targets: {_counted(conflicts)}" if conflicts["facts"] else "all to the same target"


def _counted(group: Mapping[str, Any]) -> str:
    one = group["examples"][0]
    example = f"{one['text']} -> {' / '.join(one['targets'])} (records {', '.join(one['case_ids'])})"
    return f"{group['facts']}, in {group['records']} records, e.g. {_short(example)}"


def _about_methods(methods: Mapping[str, Any]) -> Iterator[str]:
    if not methods["cannot"]:
        yield "methods: every method can edit it (kedit ls methods says what else they need)"
        return
    yield f"methods that can edit it: {', '.join(methods['can'])}"
    for need, reason in methods["cannot"].items():
        yield (
            f"not {', '.join(reason['methods'])}: they need the {need}, "
            f"which {reason['records_without']} requests do not have"
        )


def _short(text: str, most: int = WIDTH) -> str:
    """A text on one line, cut in the middle where it is long."""
    return cut_middle(one_line(text), most)


def _first(first: Mapping[str, Any]) -> Iterator[str]:
    request = first["request"]
    for name in ("case_id", "prompt", "subject", "target_new", "target_true", "relation"):
        if request[name] is not None and not (name == "relation" and request[name] == request["prompt"]):
            yield f"{name}: {_short(request[name])}"
    shown_of: dict[str, int] = {}
    for probe in first["probes"]:
        kind = probe["kind"] + (f".{probe['group'].lower()}" if probe.get("group") else "")
        shown_of[kind] = shown_of.get(kind, 0) + 1
        if shown_of[kind] <= SOME:
            rival = f" (rival: {_short(probe['rival'], 40)})" if probe.get("rival") else ""
            yield f"{kind}: {_short(probe['text'])} -> {_short(probe['answer'], 60)}{rival}"
    for kind, n in shown_of.items():
        if n > SOME:
            yield f"{kind}: {n - SOME} more"
