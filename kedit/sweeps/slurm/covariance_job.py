"""Which statistics a sweep needs: what to give `kedit stats`, once for each model and text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from kedit.covariance import StatsConfig
from kedit.model.lm import LMConfig

NOT_KEYED = ("ridge",)
"""Options of the statistics that do not change what is computed."""


def stats_commands(configs: Iterable[Any]) -> list[list[str]]:
    """What stands after `kedit stats`, with the layers of all tasks together.

    A method that names no layers is left out, unless it edits one, as `kedit stats` knows which that is: MEMIT's
    tables choose by the model, so the first such task computes what it needs. So is one whose layers a trace chooses.

    Args:
        configs: Of the tasks, as `kedit fit` parses them.
    """
    found: dict[str, tuple[list[str], set[int]]] = {}
    for config in configs:
        args = config.model.init_args
        while args.get("editor") is not None:  # of a method that adds to another
            args = args.editor.init_args
        layers = _layers(args)
        if args.get("stats") is None or not args.get("mom2_adjustment", True) or layers is None:
            continue
        words = [*_words("lm", config.lm, LMConfig()), *_words("stats", args.stats, StatsConfig())]
        of_all = found.setdefault(json.dumps([words, bool(layers)]), (words, set()))
        of_all[1].update(layers)
    return [[*words, *([f"--layers={sorted(layers)}"] if layers else [])] for words, layers in found.values()]


def _layers(args: Any) -> list[int] | None:
    """The layers that are edited; empty for the one that `kedit stats` takes by itself, None for those it cannot."""
    if "layers" in args:
        return None if args.layers == "auto" else args.layers
    layer = args.get("layer")
    if layer == "auto":
        return None
    return [] if layer is None else [layer]


def _words(group: str, options: Any, defaults: Any) -> list[str]:
    """The options that are not at their defaults."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(defaults)}
    changed = {name: value for name, value in values.items() if value != getattr(defaults, name)}
    if group == "lm":
        changed = {"name": options.name, **changed}
    kept = {name: value for name, value in changed.items() if name not in NOT_KEYED}
    return [
        f"--{group}.{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in kept.items()
    ]
