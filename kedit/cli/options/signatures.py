"""The options of kedit's classes, read off their source: a misspelt one is answered before anything is imported.

A class takes what its constructor names, and, with `**kwargs`, what those of its bases name. The option parser does
the same with the classes themselves; it has the last word.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)


def options(name: str) -> dict[str, str] | None:
    """The options of a class of kedit.

    Args:
        name: The class's name.

    Returns:
        Option -> the name of the class whose options stand below it, or an empty text; None where there is no such
        class, or its options cannot be read off.
    """
    found = _definition(name)
    if found is None:
        return None
    made: dict[str, str] = {}
    init = next((n for n in found.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is not None:
        arguments = [*init.args.posonlyargs, *init.args.args[1:], *init.args.kwonlyargs]
        made = {argument.arg: _below(argument.annotation) for argument in arguments}
        if init.args.kwarg is None:
            return made
    elif any(ast.unparse(part).startswith("dataclass") for part in found.decorator_list):
        fields = [n for n in found.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        made = {ast.unparse(n.target): _below(n.annotation) for n in fields}
    for base in found.bases:
        made = (options(ast.unparse(base)) or {}) | made
    return made


def groups(source: Path) -> dict[str, str]:
    """The mappings from texts to classes that a file writes out, e.g. of callbacks by their options."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found |= {
                str(key.value): value.id
                for key, value in pairs
                if isinstance(key, ast.Constant) and isinstance(value, ast.Name)
            }
    return found


def classes_in(folder: Path) -> list[str]:
    """The public classes that the files below a folder define."""
    return [name for name, home in _homes().items() if folder in home.parents and not name.startswith("_")]


@cache
def _homes() -> dict[str, Path]:
    """Class -> the file that defines it."""
    files = [*ROOT.rglob("*.py"), *(ROOT / "callbacks").glob("*.py")]  # which may be a link
    return {name: file for file in files for name in _CLASS.findall(file.read_text(encoding="utf-8"))}


@cache
def _definition(name: str) -> ast.ClassDef | None:
    home = _homes().get(name)
    if home is None:
        return None
    body = ast.parse(home.read_text(encoding="utf-8")).body
    return next((node for node in body if isinstance(node, ast.ClassDef) and node.name == name), None)


def _below(annotation: ast.expr | None) -> str:
    """The class of kedit that an option's type names; empty where it names none, or several."""
    if annotation is None:
        return ""
    names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} & _homes().keys()
    return names.pop() if len(names) == 1 else ""
