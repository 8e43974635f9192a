"""Words of `kedit fit` and the configurations that they name, looked through for options by names of before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from kedit.errors import KeditError
from kedit.runtime.moved_options import check_moved
from kedit.runtime.yaml_text import load_yaml, read_text


def check_moved_words(words: Sequence[str]) -> None:
    """Refuse options that have another name or place now; what is wrong otherwise is left to the option parser.

    Args:
        words: What stands after `kedit fit`.

    Raises:
        KeditError: In one line, every old option of a configuration, or the first of the command line.
    """
    left = list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if not name.startswith("-"):
            continue
        if not equals and left and not left[0].startswith("--"):
            value = left.pop(0)
        if name in ("-c", "--config"):
            check_moved(_content(value, file=True), f"{value}: " if _is_file(value) else "config: ")
        else:
            option = name.lstrip("-").rstrip("+")
            check_moved({option: _content(value, file=False)})


def _content(text: str, file: bool) -> Any:
    """A value as YAML, or that of the file which it names; None where it cannot be read."""
    if not file and "{" not in text:
        return None
    try:
        return load_yaml(read_text(Path(text)) if file and _is_file(text) else text)
    except (KeditError, yaml.YAMLError):
        return None


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False
