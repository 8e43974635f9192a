"""What is wrong, for a user: `of_kedit` finds kedit's own error, `explain` puts the option parser's in one line.

jsonargparse nests the reasons of every branch it tried; a user needs the innermost that is about the option.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Sequence
from difflib import get_close_matches

from kedit.errors import KeditError, shown
from kedit.runtime.option_values import check_text
from kedit.runtime.yaml_text import check_regular, refuse_pipe

KEY = re.compile(r'Parser key "([\w.]+)":')
CLASS = re.compile(r"Problem with given class_path '([\w.]+)'")
UNKNOWN = (
    re.compile(r"Group '([\w.]+)' does not accept option '([\w.]+)'"),
    re.compile(r"(?:does not accept option '|Option '|unrecognized arguments: --)([\w.]+)"),
)
NO_CLASS = (
    re.compile(r"Expected a dot import path string: (\S+)"),
    re.compile(r"Import path (\S+) does not correspond to a subclass"),
    re.compile(r"No module named '(\S+)'"),
    re.compile(r"Expected a path but ([^\[{].*?|) either not accessible"),
)
NO_NAME = re.compile(r"(?:Key must be a string, got|Empty nested key): (.*?)\.?(?= Got value| Given value|$)")
NO_MAPPING = re.compile(r"object has no attribute|unhashable type|object is not|Not a valid subclass")
DIGITS = re.compile(r"Exceeds the limit \((\d+) digits\)")
SUBCLASS = re.compile(r"Subclasses are disabled for (\w+), thus (.+?) is not accepted as class_path")
OPTIONS = re.compile(r"Subtypes: \[<class 'kedit\.[\w.]+Config'>")  # a group of options, or null
NO_GROUP = re.compile(r"Unable to load config '(.+)'")
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


LINE = 600
"""The most characters in a line of a message."""


class Interrupted(Exception):
    """A run that Ctrl-C or a signal stopped.

    Args:
        message: What is kept, and how to go on.
        status: The command's exit status: 128 + the signal's number.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def check_words(words: Sequence[str]) -> None:
    """Refuse words of a command that the option parser would stumble over, or wait for.

    Raises:
        KeditError: A word that is no text, or a pipe, socket or device where a configuration is read.
    """
    option = ""
    for word in words:
        name, _, value = word.partition("=") if word.startswith("-") else (option, "", word)
        check_text(name.lstrip("-") or "the command", value)
        check_text("the command", word)
        if value and name in ("-c", "--config"):
            check_regular("config", value)
        elif value and not name.endswith(("out", "path")):
            refuse_pipe(name.lstrip("-") or "the command", value)
        option = word if word.startswith("-") else ""


def printable(message: str) -> str:
    """A message as a terminal may have it: no control characters, and lines of at most a few hundred characters."""
    lines = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in message.split("\n")]
    return "\n".join(line if len(line) <= LINE else f"{line[: LINE - 105]} ... {line[-100:]}" for line in lines)


def of_kedit(error: BaseException | None) -> str | None:
    """The message of kedit's own error, which the option parser may have wrapped in its own."""
    while error is not None and not isinstance(error, KeditError):
        error = error.__cause__
    return None if error is None else str(error)


def explain(message: str) -> str:
    """One or two lines for a user.

    Args:
        message: Text of jsonargparse's error.
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    keys = [key for line in lines for key in KEY.findall(line)]
    parts = ".".join(keys).removeprefix("fit.").split(".")
    option = ".".join(part for i, part in enumerate(parts) if part != parts[i - 1] or i == 0)
    classes = CLASS.findall(message)
    if found := _first(REQUIRED, lines):
        return _required(found.group(1), option)
    if found := _first(SUBCLASS, lines):
        value = shown(found.group(2).strip("'"))
        option = option or _group(found.group(1))
        return f"{option}: for a {found.group(1)} it expects options below it, and no class_path; not {value}"
    if found := _first(UNKNOWN[0], lines) or _first(UNKNOWN[1], lines):
        name = ".".join(x for x in (option, *found.groups()) if x)
        return f"{name}: there is no such option{_meant(found.groups()[-1], classes)}"
    if found := next((hit for pattern in NO_CLASS if (hit := _first(pattern, lines))), None):
        if _first(OPTIONS, lines):
            return f"{option}: expects options of its own below it, not {shown(found.group(1))}"
        return f"{option}: there is no class {shown(found.group(1))} for it{_choices(option)}"
    if lines[0].startswith("Problems parsing config"):
        where = re.findall(r"line (\d+), column (\d+)", message)
        why = next((line for line in lines[1:] if not line.startswith("in ")), "")
        place = f" at line {where[-1][0]}, column {where[-1][1]}" if where else ""
        return f"config: not valid YAML{place}: {why or lines[0].partition(': ')[2]}"
    if found := _first(NO_GROUP, lines):
        return f"{option}: expects options of its own below it, not {shown(found.group(1))}"
    if found := _first(NO_NAME, lines):
        return f"{option or 'config'}: a key below it is no name of an option: {found.group(1)[:60]}"
    if option and _first(NO_MAPPING, lines):
        if option in ("model", "data", "model.editor"):
            return f"{option}: expects class_path, the name of a class, and init_args, a mapping of its options"
        return f"{option}: expects options of its own below it"
    if found := _first(DIGITS, lines):
        return f"{option}: expects a number, not one of more than {found.group(1)} digits"
    if lines[0].startswith("Unexpected config"):
        return "config: the file is empty or no mapping of options; see configs/rome_smollm2.yaml"
    if (wanted := _wanted(lines)) not in ("", "null"):
        value = next((found.group(1) for line in lines if (found := VALUE.search(line))), "")
        value = re.sub(r"^NestedArg\(key='\w+', val='(.*)'\)$", r"'\1'", value)
        return f"{option}: expects {wanted}" + (f", not {shown(value)}" if value else "")
    noise = (
        "Given value",
        "Problem with",
        "Parser key",
        "Does not validate",
        "Subtypes",
        "Errors:",
        "Expected a <",
    )
    reasons = [line for line in lines if not line.startswith(noise)]
    reasons = [*re.findall(r'Parser key "[\w.]+": (.+)', lines[0]), *reasons]
    return (f"{option}: " if option else "") + ", ".join(reasons[:4])[:400]


def _first(pattern: re.Pattern[str], lines: list[str]) -> re.Match[str] | None:
    return next((hit for line in lines if (hit := pattern.search(line))), None)


def _group(cls: str) -> str:
    """The option at the top of a configuration that a class of that name configures."""
    from kedit.cli.options.parts import TOP

    return next((name for name, known in TOP.items() if known.__name__ == cls), "config")


def _required(names: str, option: str) -> str:
    wanted = [name.strip().removeprefix("fit.") for name in names.split(",")]
    if not option and set(wanted) <= {"model", "data"}:
        missing = " and ".join(f"--{name}" for name in sorted(wanted, reverse=True))
        start = "Start from a file: kedit fit --config configs/rome_smollm2.yaml (kedit ls lists them)"
        return f"{missing} missing: which method edits which facts?\n{start}"
    name = ".".join(part for part in (option, wanted[0]) if part)
    return f"{name}: this option is needed and has no default{_choices(name)}"


def _wanted(lines: list[str]) -> str:
    """What the innermost option expects: the types of its own branches, which follow its key."""
    start = max((i for i, line in enumerate(lines) if KEY.search(line)), default=0)
    wanted: list[str] = []
    for line in lines[start:]:
        if line.startswith("Given value"):
            break
        wanted += [_type(text) for text in EXPECTED.findall(line)]
        if "Got value" in line:  # not a union: what follows belongs to an outer option
            break
    return " or ".join(dict.fromkeys(wanted))


def _type(text: str) -> str:
    if text.startswith("typing.Literal["):
        values = ast.literal_eval(text.removeprefix("typing.Literal"))
        return ("one of " if len(values) > 1 else "") + ", ".join(str(value) for value in values)
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    return TYPES.get(name, name)


def _choices(option: str) -> str:
    """The classes that can stand there."""
    if option == "data":
        from kedit.data import datasets_index

        return "; there are " + ", ".join(name for name, _, _ in datasets_index())
    if option in ("model", "model.editor"):
        from kedit import methods
        from kedit.methods.locate_then_edit.base import LocateThenEdit

        names = [name for name in methods.__all__ if name != "EditingModule"]
        if option == "model.editor":
            names = [name for name in names if issubclass(getattr(methods, name), LocateThenEdit)]
            return "; there are " + ", ".join(names) + "; PRUNE and RECT take any method"
        return "; there are " + ", ".join(names)
    return ""


def _meant(name: str, classes: list[str]) -> str:
    """The option that was probably meant, where a class's arguments tell."""
    if not classes:
        return ""
    module, _, cls = classes[-1].rpartition(".")
    known = _options(getattr(importlib.import_module(module), cls))
    name = name.rpartition(".")[2]
    if "editor" in known:
        from kedit.methods.locate_then_edit.base import LocateThenEdit

        if name in _options(LocateThenEdit):
            return f"; it is an option of the editor: model.editor.{name}"
    close = get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _options(cls: type) -> set[str]:
    """Names of a class's options; its bases' too where it takes them as **kwargs."""
    known: set[str] = set()
    for base in cls.__mro__[:-1]:
        names = inspect.signature(base.__init__).parameters
        known |= set(names) - {"self", "args", "kwargs"}
        if "kwargs" not in names:
            break
    return known
