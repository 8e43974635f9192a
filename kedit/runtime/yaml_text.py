"""Text files and YAML that a user gave: read, or refused in a line that names the file.

A file must be a regular one (a pipe without a writer would never end) of UTF-8 text. YAML must be what a person would
write: nested 100 levels at most, without anchors that multiply into millions of values or hold themselves, and without
a key that is there twice, of which one would silently win.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from kedit.errors import KeditError, shown
from kedit.runtime.option_values import check_path

LEVELS = 100
VALUES = 200_000
"""Most values in a YAML text, those that an alias repeats counted each time."""

LARGEST = 16 * 2**20
"""Bytes of the largest configuration that is read."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_regular(name: str, path: str) -> None:
    """Refuse what cannot be read to its end: a pipe, a socket, a device. A path where nothing is passes.

    Args:
        name: The option that gives the path.
        path: The path.

    Raises:
        KeditError: Names the option.
    """
    check_path(name, path)
    try:
        mode = os.stat(os.path.expanduser(path)).st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise KeditError(f"{name}: {shown(path)} is no regular file but a pipe, a socket or a device")


def refuse_pipe(name: str, path: str) -> None:
    """Refuse a pipe or a socket where a file may be meant, as whoever opens it may wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        raise KeditError(f"{name}: {shown(path)} is no regular file but a pipe or a socket")


def read_text(path: Path) -> str:
    """The text of a file that a user named.

    Raises:
        KeditError: Says what is wrong with it, without its name.
    """
    check_regular("the path", str(path))
    try:
        if path.stat().st_size > LARGEST:
            raise KeditError(f"too large: more than {LARGEST >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise KeditError("no such file") from None
    except OSError as error:
        raise KeditError(f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise KeditError(f"no UTF-8 text ({error.reason} at byte {error.start})") from None


def load_yaml(text: str, load: Callable[[str], Any] = yaml.safe_load) -> Any:
    """YAML as a person writes it.

    Args:
        text: The text.
        load: Makes values of it.

    Raises:
        yaml.YAMLError: It is none, or breaks one of the limits above.
    """
    try:
        if any(c in text for c in '\n{[&"'):  # otherwise a single value
            _check_levels(text)
            _check(yaml.compose(text, Loader=_LOADER))
        return load(text)
    except RecursionError:
        raise _problem(f"nested deeper than {LEVELS} levels", None) from None
    except (ValueError, OverflowError) as error:  # 5,000 digits, the 40th of May
        why = str(error).partition(";")[0].partition(":")[0]
        raise _problem(f"a value that cannot be read: {shown(why)}", None) from None
    except (AttributeError, TypeError, KeyError) as error:  # of the YAML library, at tags in strange places
        raise _problem(f"a value that cannot be read: {type(error).__name__}", None) from None


def _problem(what: str, node: yaml.Node | yaml.Event | None) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=None if node is None else node.start_mark)


def _check_levels(text: str) -> None:
    """Before anything walks down: the library would take a level of the machine's stack for each."""
    level = 0
    for n, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        level += isinstance(event, yaml.CollectionStartEvent)
        level -= isinstance(event, yaml.CollectionEndEvent)
        if level > LEVELS:
            raise _problem(f"nested deeper than {LEVELS} levels", event)
        if n > 2 * VALUES:
            raise _problem(f"more than {VALUES} values", event)


def _check(root: yaml.Node | None) -> None:
    if root is None:
        return
    count = 0
    waiting: list[tuple[yaml.Node, int]] = [(root, 1)]
    while waiting:
        node, level = waiting.pop()
        count += 1
        if level > LEVELS:
            raise _problem(f"nested deeper than {LEVELS} levels, or in itself", node)
        if count > VALUES:
            raise _problem(f"more than {VALUES} values", node)
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        elif isinstance(node, yaml.ScalarNode) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in node.value):
            raise _problem("a text with a NUL, or with half of a UTF-16 pair", node)
        waiting.extend((child, level + 1) for child in _children(node))


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_keys(node: yaml.MappingNode) -> None:
    seen: set[Hashable] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if (key.tag, key.value) in seen:
                raise _problem(f"the key {shown(key.value, 40)} is there twice", key)
            seen.add((key.tag, key.value))
