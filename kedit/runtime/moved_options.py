"""Options that have another name or place since kedit 0.2, and one line for whoever gives an old one.

It knows option names alone: a configuration, the words of a command and a sweep file all come here as nested mappings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from kedit.errors import KeditError

MOST = 8
"""The most options that a message lists."""

_SHARED = {"lm": "lm", "regime": "edit.regime", "lanes": "edit.lanes", "seed": "edit.seed"}
_TRACE = {"pick": "node_source", "enough": "coverage", "bottom": "contrast_nodes"}
_ADAPTER = {
    "reach": "edit_strength",
    "reaches": "edit_strengths",
    "reach_variants": "strength_variants",
    "siblings": "confusable_names",
    "rivals": "other_edits",
}

MOVED: Mapping[str, str] = MappingProxyType(
    {f"model.{old}": new for old, new in _SHARED.items()}
    | {f"model.editor.{old}": new for old, new in _SHARED.items()}
    | {"model.keep": "model.locality"}
    | {f"model.trace.{old}": f"model.trace.{new}" for old, new in _TRACE.items()}
    | {f"model.adapter.{old}": f"model.adapter.{new}" for old, new in _ADAPTER.items()}
)
"""Old option -> new one, both without the `init_args` that a class's options stand below."""


def check_moved(options: Any, where: str = "") -> None:
    """Refuse options by names that they had before.

    Args:
        options: A mapping of options, nested or with dots in its keys.
        where: What messages begin with, such as a file and a colon.

    Raises:
        KeditError: In one line, every old option and where it is now.
    """
    if not isinstance(options, Mapping):
        return
    found = dict(_moved(options, ""))
    told = [f"{old} is now {new}" for old, new in list(found.items())[:MOST]]
    if found:
        more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
        raise KeditError(f"{where}{', '.join(told)}{more} (kedit 0.2: configs/reference shows every option)")


def _moved(options: Mapping[Any, Any], above: str) -> Iterator[tuple[str, str]]:
    """Old option -> new one, of all that are below."""
    for key, value in options.items():
        parts = [part for part in f"{above}.{key}".split(".") if part and part != "init_args"]
        name = ".".join(parts)
        for length in range(1, len(parts) + 1):
            if new := MOVED.get(".".join(parts[:length])):
                below = parts[length:]
                yield name, ".".join([new, *below])
                break
        else:
            if isinstance(value, Mapping):
                yield from _moved(value, name)
