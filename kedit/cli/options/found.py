"""Configurations given by name: `--config rep_smollm2` becomes the path of the file that is meant."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from kedit.errors import KeditError
from kedit.runtime.shipped import config_path, is_shipped

log = logging.getLogger(__name__)


def found_configs(words: Sequence[str], find: Callable[[str], Path] = config_path, say: bool = True) -> list[str]:
    """Words of a command with the files that `--config` names; one found elsewhere than it says is told in the log.

    Args:
        words: What stands after the command. YAML in a word of its own is left as it is.
        find: Finds the file of a name.
        say: Tell it; false where the same words were told before.

    Raises:
        KeditError: There is no such file; names those that are spelt alike.
    """
    if any(word == "-h" or word.startswith("--help") for word in words):
        return list(words)
    done: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name not in ("-c", "--config"):
            done.append(word)
        elif equals:
            done.append(f"{name}={_found(value, find, say)}")
        elif left and not left[0].startswith("-"):
            done += [name, _found(left.pop(0), find, say)]
        else:
            done.append(word)
    return done


def _found(value: str, find: Callable[[str], Path], say: bool) -> str:
    if "\n" in value or "{" in value:
        return value
    try:
        path = find(value)
    except KeditError as error:
        raise KeditError(f"config: {error}") from None
    if path == Path(value):
        return value
    if say:
        log.info("config: %s", f"{path.stem}, as it comes with kedit" if is_shipped(path) else path)
    return str(path)
