"""`kedit env`: what a report of an error needs, to be pasted into it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kedit.runtime.environment import environment

ABOUT = (
    "Versions, machine, cache: what a report of an error needs. It names neither machine nor user, and of environment "
    "variables the names alone."
)


def env(words: list[str]) -> None:
    """Print it.

    Args:
        words: What stands after `kedit env`.
    """
    parser = ArgumentParser(prog="kedit env", exit_on_error=False, description=ABOUT)
    parser.add_argument("--json", action="store_true", help="As JSON.")
    args = parser.parse_args(words)
    found = environment()
    console = Console(highlight=False, soft_wrap=True)
    if args.json:
        console.out(json.dumps(found, indent=2, ensure_ascii=False), highlight=False)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in found.items():
        for n, line in enumerate(_lines(value)):
            table.add_row("" if n else name, Text(line))
    Console(highlight=False).print(table)


def _lines(value: Any) -> Iterator[str]:
    """A section, in lines that a person reads."""
    if isinstance(value, list) and all(isinstance(one, Mapping) for one in value) and value:
        for one in value:
            yield ", ".join(_pairs(one))
    elif isinstance(value, list):
        yield ", ".join(map(str, value)) or "none"
    elif isinstance(value, Mapping):
        yield ", ".join(_pairs({name: one for name, one in value.items() if not isinstance(one, Mapping)}))
        for one in value.values():
            if isinstance(one, Mapping):
                yield from (f"{name}: {size}" for name, size in one.items())
    else:
        yield str(value)


def _pairs(value: Mapping[str, Any]) -> Iterator[str]:
    for name, one in value.items():
        if one is not None:
            yield f"{name} {one}"
