"""What the option parser says, in one line that names the option and what it wants: `explain`.

jsonargparse nests the reasons of every branch it tried; a user needs the innermost that is about the option.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from difflib import get_close_matches

KEY = re.compile(r'Parser key "([\w.]+)":')
CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
UNKNOWN = (
    re.compile(
        r"(?:Subcommand '\w+' does not accept option|Option|unrecognized arguments:) '?(?:--)?([\w.]+)"
    ),
    re.compile(r"Group '([\w.]+)' does not accept option '([\w.]+)'"),
)
NO_CLASS = (
    re.compile(r"Expected a dot import path string: (\S+)"),
    re.compile(r"Import path (\S+) does not correspond to a subclass"),
    re.compile(r"No module named '(\S+)'"),
)
REQUIRED = re.compile(r"the following arguments are required: (.+)")
EXPECTED = re.compile(r"Expected (?:a |an )?(<class '[\w.]+'>|typing\.Literal\[.+?\]|[\w.]+\[.+?\])(?:$|\.)")
VALUE = re.compile(r"(?:Got value|Given value): (.+)")
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
}


def explain(message: str) -> str:
    """One or two lines for a user.

    Args:
        message: Text of jsonargparse's error.
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    keys = [key for line in lines for key in KEY.findall(line)]
    option = ".".join(keys).removeprefix("fit.")
    classes = CLASS.findall(message)
    if found := _first(REQUIRED, lines):
        return _required(found.group(1), option)
    if found := _first(UNKNOWN[1], lines) or _first(UNKNOWN[0], lines):
        name = ".".join(x for x in (option, *found.groups()) if x)
        if lines[0].startswith("unrecognized arguments") and not found.group(0).count("--"):
            return f"{lines[0]}: an option begins with --"
        return f"{name}: there is no such option{_meant(found.groups()[-1], classes)}"
    if found := next((hit for pattern in NO_CLASS if (hit := _first(pattern, lines))), None):
        return f"{option}: there is no class {found.group(1)!r} for it{_choices(option)}"
    if wanted := _wanted(lines):
        value = next((v for line in lines if (v := _value(line)) is not None), "")
        return f"{option}: wants {wanted}" + (f", not {value!r}" if value else "")
    reasons = [
        line
        for line in lines
        if not KEY.search(line) and not line.startswith(("Given value", "Problem with"))
    ]
    tail = [*re.findall(r'Parser key "[\w.]+": (.+)', lines[0]), *reasons]
    where = f"{option}: " if option and not option.startswith("config") else ""
    return where + " ".join(tail[:2])[:400]


def _first(pattern: re.Pattern[str], lines: list[str]) -> re.Match[str] | None:
    return next((hit for line in lines if (hit := pattern.search(line))), None)


def _required(names: str, option: str) -> str:
    wanted = [name.strip().removeprefix("fit.") for name in names.split(",")]
    if not option and set(wanted) <= {"model", "data"}:
        return (
            f"say what to run: {' and '.join('--' + name for name in sorted(wanted, reverse=True))} missing.\n"
            "Start from a file: kedit fit --config configs/rome_smollm2.yaml (kedit ls lists them)"
        )
    return (
        f"{'.'.join([option, wanted[0]]) if option else wanted[0]}: this option is needed and has no default"
    )


def _wanted(lines: list[str]) -> str:
    """What the innermost option wants: the types of its own branches, which follow its key."""
    start = max((i for i, line in enumerate(lines) if KEY.search(line)), default=0)
    wanted: list[str] = []
    for line in lines[start:]:
        if line.startswith("Given value"):
            break
        wanted += [_type(text) for text in EXPECTED.findall(line)]
    return " or ".join(dict.fromkeys(wanted))


def _type(text: str) -> str:
    if text.startswith("typing.Literal["):
        values = ast.literal_eval(text.removeprefix("typing.Literal"))
        return ("one of " if len(values) > 1 else "") + ", ".join(str(value) for value in values)
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    return TYPES.get(name, name)


def _value(line: str) -> str | None:
    found = VALUE.search(line)
    return None if found is None else found.group(1)


def _choices(option: str) -> str:
    """The classes that can stand there."""
    if option == "data":
        from kedit.data import datasets_index

        return "; there are " + ", ".join(name for name, _, _ in datasets_index())
    if option == "model":
        from kedit import methods

        return "; there are " + ", ".join(name for name in methods.__all__ if name != "EditingModule")
    return ""


def _meant(name: str, classes: list[str]) -> str:
    """The option that was probably meant, where a class's arguments tell."""
    if not classes:
        return ""
    module, _, cls = classes[-1].rpartition(".")
    known: set[str] = set()
    for base in getattr(importlib.import_module(module), cls).__mro__[:-1]:
        known |= set(inspect.signature(base.__init__).parameters) - {"self", "args", "kwargs"}
    close = get_close_matches(name.rpartition(".")[2], sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
