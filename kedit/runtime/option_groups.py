"""Whether a parsed configuration has groups of options and values where the classes that take them expect these.

The option parser lets a plain value pass where a group belongs (`lm: gpt2`), and a null for any option of a class.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import Namespace

from kedit.errors import KeditError, shown


def check_groups(config: Namespace, classes: Mapping[str, type]) -> None:
    """Refuses what no class could take.

    Args:
        config: What the option parser gave.
        classes: Of the groups at the top, what each configures.

    Raises:
        KeditError: Names the option.
    """
    for name, cls in classes.items():
        if name in config:  # one without options is not there
            _check(name, config[name], _hints(cls))
    for name, chosen in (("trainer", config.trainer), ("model", config.model), ("data", config.data)):
        if not isinstance(chosen, Namespace):
            raise _no_group(name, chosen)
    for name, chosen in _chosen(config):
        check_chosen(name, chosen)


def _chosen(config: Namespace) -> Iterator[tuple[str, Namespace]]:
    """The classes that the user chose, by the option that messages name."""
    yield "model", config.model
    yield "data", config.data
    yield from editors(config.model)


def check_chosen(name: str, chosen: Namespace) -> None:
    """Refuse what the class that a user chose for an option could not take."""
    _check(name, chosen.init_args, _hints(class_of(chosen)))


def editors(model: Namespace) -> Iterator[tuple[str, Namespace]]:
    """The editor of a method that has one, the editor's own, and so on, by the options that they are."""
    name, chosen = "model", model
    while isinstance(chosen, Namespace) and (chosen := chosen.init_args.get("editor")) is not None:
        name += ".editor"
        yield name, chosen


def _check(where: str, values: Any, hints: Mapping[str, Any]) -> None:
    if not isinstance(values, Namespace):
        raise _no_group(where, values)
    for name, value in vars(values).items():
        hint = hints.get(name)
        if is_dataclass(hint):
            _check(f"{where}.{name}", value, _hints(hint))
        elif value is None and hint is not None and not _takes_null(hint):
            raise KeditError(f"{where}.{name}: null is no value of it; leave it out for the default")


def _takes_null(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_takes_null(part) for part in get_args(hint))
    return hint in (None, type(None), Any)


def class_of(chosen: Namespace) -> Any:
    """The class that a parsed `class_path` names."""
    module, _, name = str(chosen.class_path).rpartition(".")
    return getattr(importlib.import_module(module), name)


def options_of(chosen: Namespace) -> list[str]:
    """The names of the options of the class that a `class_path` names."""
    return [name for name in _hints(class_of(chosen)) if name not in ("return", "kwargs")]


def _hints(cls: Any) -> dict[str, Any]:
    """The types of a class's options, those that it hands on to its bases included."""
    bases = [base for base in cls.__mro__ if base.__module__.startswith("kedit.")]
    return {name: hint for base in reversed(bases) for name, hint in get_type_hints(base.__init__).items()}


def _no_group(option: str, value: Any) -> KeditError:
    return KeditError(f"{option}: expects options of its own below it, not {shown(value)}")
