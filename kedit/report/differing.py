"""What several runs have in common, and in what they differ: of their configs, and of where their numbers come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kedit.report.grid import Column, Entry, Grid

_UNSAID = "–"


@dataclass(frozen=True)
class Differing:
    """Values of several runs, option by option.

    Attributes:
        common: Option -> its value, the same in all runs.
        differs: Option -> run -> value, for options that two runs or more have, and not alike.
        alone: Run -> its options that are of no other value elsewhere because others lack them.
    """

    common: Mapping[str, str]
    differs: Mapping[str, Mapping[str, str]]
    alone: Mapping[str, Mapping[str, str]]


def differing(runs: Mapping[str, Mapping[str, Any]], without: tuple[str, ...] = ()) -> Differing:
    """Compare nested values.

    Args:
        runs: Run -> its values.
        without: Options that say nothing, by how they begin.
    """
    flat = {name: leaves(values) for name, values in runs.items()}
    names = dict.fromkeys(option for own in flat.values() for option in own if not option.startswith(without))
    common: dict[str, str] = {}
    differs: dict[str, dict[str, str]] = {}
    alone: dict[str, dict[str, str]] = {name: {} for name in runs}
    for option in names:
        having = {name: own[option] for name, own in flat.items() if option in own}
        values = set(having.values())
        if len(having) == len(flat) and len(values) == 1:
            common[option] = next(iter(values))
        elif len(values) > 1:
            differs[option] = having
        else:
            for name, value in having.items():
                alone[name][option] = value
    return Differing(common, differs, {name: own for name, own in alone.items() if own})


def differing_grid(found: Differing, runs: Mapping[str, Any], name: str, title: str) -> Grid | None:
    """An option a row, a run a column; None where the runs do not differ."""
    if not found.differs:
        return None
    columns = (Column("option", text=True), *(Column(run, text=True) for run in runs))
    rows = [
        (Entry(option), *(Entry(having.get(run, _UNSAID)) for run in runs)) for option, having in found.differs.items()
    ]
    return Grid(name, title, columns, tuple(rows))


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as `a.b` -> text; `init_args` is not named, as on the command line."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        if isinstance(value, Mapping) and value:
            found |= leaves(value, name)
        else:
            found[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found
