"""`kedit ls`: what there is to choose from, read from the code and from the folder at hand."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from kedit.data import datasets_index
from kedit.errors import KeditError
from kedit.model import known_models
from kedit.model.pretrained import ALIASES
from kedit.runtime.protocols import protocols
from kedit.runtime.shipped import shipped_configs

USAGE = """\
usage: kedit ls [methods | models | protocols]

Lists the methods, the data sets, the models with values of their own, and the experiments: those in ./configs, or
else those that come with kedit.
kedit ls methods says of each method where it is from, in which regimes it edits, what it changes and needs, and what an
edit costs.
kedit ls protocols says of each named protocol which options it sets, what its data must have and what it leaves open.
kedit ls models lists the types of models that were tried: which are edited right, which are refused, and why.
"""

EDITORS = "its editor's"
LEGEND = """\
needs, beside prompt and new target: subject: the request names it, in its prompt; statistics: of kedit stats, or made
at the first run; training data: other records, see the method's page; true target: the request has it.
cost of an edit, in passes of the model over its prompt: none; low: fewer than 10; medium: up to some hundreds; high:
more."""

# What people call the shapes of ROME's table (any other model works too, with values by its depth).
NAMES: Mapping[tuple[str, int, int], str] = MappingProxyType(
    {
        ("gpt2", 24, 1024): "gpt2-medium",
        ("gpt2", 36, 1280): "gpt2-large",
        ("gpt2", 48, 1600): "gpt2-xl",
        ("gptj", 28, 4096): "gpt-j-6b",
        ("gpt_neox", 44, 6144): "gpt-neox-20b",
        ("llama", 32, 4096): "llama-2-7b, llama-3-8b",
        ("mistral", 32, 4096): "mistral-7b",
        ("qwen2", 28, 3584): "qwen2-7b, qwen2.5-7b",
        ("llama", 30, 576): "smollm2-135m",
    }
)


def ls(words: Sequence[str]) -> None:
    """Print the tables.

    Args:
        words: What stands after `kedit ls`: nothing, `methods`, `models`, `protocols`, or --help.

    Raises:
        KeditError: Anything else.
    """
    console = Console(highlight=False)
    if words and words[0] in ("-h", "--help"):
        console.print(USAGE, end="", markup=False)
        return
    if list(words) == ["models"]:
        _tried(console)
        return
    if list(words) == ["methods"]:
        _compared(console)
        return
    if list(words) == ["protocols"]:
        _protocols(console)
        return
    if words:
        raise KeditError(f"kedit ls takes nothing, or the word methods, models or protocols, got {' '.join(words)}")
    console.print(_table("methods", ("model.class_path", "what it is"), _methods()))
    data = [(name, "yes" if path else "", what) for name, what, path in datasets_index()]
    console.print(_table("data sets", ("data.class_path", "path needed", "what it holds"), data))
    columns = ("model", "layers", "width", "ROME's layer", "MEMIT's layers")
    console.print(_table("models with values of their own", columns, _models()))
    console.print(
        f"lm.name: an alias ({', '.join(ALIASES)}: fetched with pip), a local folder, any decoder's hub id",
        soft_wrap=True,
    )
    files = {str(file): file for file in sorted(Path("configs").glob("*.yaml"))}
    if not files:
        files = {name: file for name, file in shipped_configs().items() if "/" not in name}
    console.print(_table("experiments", ("kedit fit --config", "what it is"), _configs(files)))
    console.print("kedit config list WORD finds one, kedit config copy NAME makes it yours")


def _tried(console: Console) -> None:
    """The table of families that were tried."""
    versions = ", ".join(f"{name} {version}" for name, version in known_models.versions().items())
    console.print(
        f"A tiny random model of each decoder type, tried with {versions}. Whatever its type, every model is tried "
        "when it is loaded, and refused where an edit would be wrong.",
        soft_wrap=True,
    )
    table = known_models.table()
    right = [kind for kind, known in table.items() if known.state == "right"]
    console.print(_table(f"right: {len(right)}", ("edits are what full forward passes say",), [(", ".join(right),)]))
    for state in ("refused", "not tried"):
        rows = [(kind, known.reason) for kind, known in table.items() if known.state == state]
        console.print(_table(f"{state}: {len(rows)}", ("type", "why"), rows))


def classes() -> Iterator[tuple[str, Any]]:
    """Name and class of every method."""
    from kedit import methods

    for name in methods.__all__:
        if name != "EditingModule":
            yield name, getattr(methods, name)


def _methods() -> Iterator[tuple[str, ...]]:
    for name, method in classes():
        yield name, _first_sentence(inspect.getdoc(method) or "")


def _compared(console: Console) -> None:
    """The table of methods, from their cards."""
    columns = ("method", "paper", "regimes", "what an edit changes", "needs", "cost")
    rows = []
    for name, method in classes():
        card = method.card
        wraps = isinstance(method.regimes, property)  # a wrapper has those of the editor that it is given
        regimes = EDITORS if wraps else ", ".join(method.regimes)
        subject = method.needs_subject and not wraps and "subject" not in card.needs
        needs = (*(["subject"] if subject else []), *card.needs) or (EDITORS if wraps else "nothing",)
        rows.append((name, card.paper, regimes, card.changes, ", ".join(needs), card.cost))
    console.print(_table("methods", columns, rows))
    console.print(LEGEND, soft_wrap=True)


def _protocols(console: Console) -> None:
    """What each named protocol sets, needs and leaves open, from its file."""
    for named in protocols().values():
        settings = "\n".join(f"{name}: {json.dumps(value)}" for name, value in named.settings.items())
        needs = ", ".join(
            f"{key} {', '.join(value)}" if isinstance(value, tuple) else key.replace("_", " ")
            for key, value in vars(named.needs).items()
            if value
        )
        rows = [("sets", settings), ("data needs", needs), ("reads", named.reads), ("leaves open", named.open)]
        console.print(_table(named.name, ("", f"{named.about} {named.paper}"), rows))
    console.print("kedit fit --config NAME --protocol PROTOCOL puts one in force; docs/protocols.md describes them")


def _models() -> Iterator[tuple[str, ...]]:
    from kedit.methods import MEMIT, ROME

    for shape, values in ROME.published.models.items():
        kind, layers, width = shape[:3]
        rows = [row["layers"] for known, row in MEMIT.published.models.items() if known[:3] == shape[:3]]
        spread = ", ".join(sorted({f"{row[0]}-{row[-1]}" for row in rows})) or "by depth"
        yield NAMES.get(shape[:3], f"a {kind} model"), str(layers), str(width), str(values["layer"]), spread


def _configs(files: Mapping[str, Path]) -> Iterator[tuple[str, ...]]:
    """Name and heading (the comment at the top, to its first empty line) of every experiment."""
    for name, file in files.items():
        heading = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith("# "):
                break
            heading.append(line.removeprefix("# ").strip())
        yield name, " ".join(heading)


def _first_sentence(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def _table(title: str, columns: Sequence[str], rows: Iterator[tuple[str, ...]] | list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0 < len(columns) - 1, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
