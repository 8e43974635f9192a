"""A first look at the words of `kedit fit`: a wrong path or a misspelt option is answered before anything is imported.

Importing PyTorch and Lightning takes seconds. Only what is certainly wrong is refused here, the rest is left to the
option parser: it knows types, values and the classes of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from kedit.cli.options.moved import check_moved_words
from kedit.cli.options.signatures import ROOT, classes_in, groups, options
from kedit.errors import KeditError, shown
from kedit.runtime.yaml_text import load_yaml, read_text

CHOSEN = ("model", "data")
"""Groups whose class the user chooses."""

OPEN = (
    "config", "print_config", "seed_everything", "protocol", "trainer", "ckpt_path", "optimizer", "lr_scheduler",
    "help",
)  # fmt: skip
"""What Lightning's command takes besides; what stands below is for it to know."""

_BETWEEN = ("init_args",)


def first_look(words: Sequence[str]) -> None:
    """Refuse what no run could be.

    Args:
        words: What stands after `kedit fit`.

    Raises:
        KeditError: Names the file or the option.
    """
    check_moved_words(words)
    if any(word == "-h" or word.startswith("--help") for word in words):
        return
    given = _pairs(words)
    configs = [_content(value) for name, value in given if name in ("config", "c")]
    classes = {part: _class(part, configs, given) for part in CHOSEN}
    for part, name in classes.items():
        _check_class(part, name)
    for config in configs:
        for name, value in (config or {}).items():
            if isinstance(name, str):
                _check_tree(name, value, classes)
    for name, _ in given:
        if name != "c":
            _check(name.removesuffix("+").split("."), classes)


def _pairs(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """Options of a command line and their values."""
    found: list[tuple[str, str | None]] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("-") or name.lstrip("-")[:1].isdigit():
            if not name.startswith("-"):
                hint = f"; a configuration is given by --config {word}" if word.endswith((".yaml", ".yml")) else ""
                raise KeditError(f"{shown(word)}: there is no option before it{hint}")
            continue
        if not equals and left and (not left[0].startswith("-") or left[0][1:2].isdigit()):
            found.append((name.lstrip("-"), left.pop(0)))
        else:
            found.append((name.lstrip("-"), value if equals else None))
    return found


def _content(value: str | None) -> Mapping[str, Any] | None:
    """What a configuration says; None where the option parser should say what is wrong with it."""
    if value is None or "\n" in value or "{" in value:
        return None
    path = Path(value)
    if not path.exists():
        raise KeditError(f"config: there is no file {value}")
    try:
        content = load_yaml(read_text(path))
    except (KeditError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def _class(part: str, configs: list[Mapping[str, Any] | None], given: list[tuple[str, str | None]]) -> str | None:
    """The one class that is chosen for a group; None where there is none, or where it changes on the way."""
    specs = [config[part] for config in configs if config and part in config]
    chosen = [spec.get("class_path") if isinstance(spec, dict) else spec for spec in specs]
    chosen += [value for name, value in given if name in (part, f"{part}.class_path")]
    names = {str(value).removeprefix(f"kedit.{ {'model': 'methods', 'data': 'data'}[part] }.") for value in chosen}
    return names.pop() if len(names) == 1 else None


def _check_class(part: str, name: str | None) -> None:
    """Refuse a misspelt class; one of the user's own has a dot, and one like no other is left to the option parser."""
    folder = {"model": ROOT / "methods", "data": ROOT / "data"}[part]
    known = classes_in(folder)
    if part == "data" and name is not None and name.endswith((".json", ".jsonl")):
        hint = f"--data Records --data.path {name} (kedit ls lists the other forms)"
        raise KeditError(f"data: expects a class, and its file as its path: {hint}")
    if name is None or "." in name or name in known:
        return
    if close := get_close_matches(name, known, n=1):
        raise KeditError(f"{part}: there is no class {shown(name)} for it; did you mean {close[0]}?")


def _check_tree(name: str, value: Any, classes: Mapping[str, str | None]) -> None:
    """Every option of a configuration, however deep."""
    parts = name.split(".")
    open_end = _check(parts, classes)
    if isinstance(value, dict) and not open_end:
        for key, below in value.items():
            _check_tree(f"{name}.{key}", below, classes)


def _check(parts: list[str], classes: Mapping[str, str | None]) -> bool:
    """Refuse an option that there is not.

    Returns:
        Whether what stands below is not known here.
    """
    top = _top()
    if parts[0] in OPEN:
        return True
    if parts[0] not in (*top, *CHOSEN):
        raise _unknown(parts[:1], [*top, *CHOSEN, *OPEN])
    cls = classes.get(parts[0]) if parts[0] in CHOSEN else top[parts[0]]
    for depth, part in enumerate(parts[1:], 1):
        if part in _BETWEEN:
            continue
        if part == "class_path":
            return True
        known = None if not cls else options(cls)
        if known is None or part == "dict_kwargs":
            return True
        if part not in known:
            if part.isidentifier() and not get_close_matches(part, known, n=1):
                return True  # perhaps of a class below: the option parser says more
            raise _unknown(parts[: depth + 1], list(known))
        cls = known[part]
        if cls and "editor" in part:  # the user chooses its class too
            return True
    return not cls and len(parts) > 1


def _top() -> dict[str, str]:
    return groups(ROOT / "cli" / "options" / "parts.py")


def _unknown(parts: Sequence[str], known: Sequence[str]) -> KeditError:
    name = ".".join(part for part in parts if part not in _BETWEEN)
    close = get_close_matches(parts[-1], known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return KeditError(f"{name}: there is no such option{hint}")
