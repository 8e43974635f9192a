"""`kedit from-easyedit`: a hyperparameter file of EasyEdit as a configuration of kedit."""

from __future__ import annotations

from pathlib import Path

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.syntax import Syntax

from kedit.cli.easyedit.translate import Translation, method_of, translate
from kedit.cli.easyedit.writing import text_of
from kedit.errors import KeditError
from kedit.runtime.option_values import check_path, check_values
from kedit.runtime.yaml_text import load_yaml, read_text

ABOUT = "Make a configuration of kedit from a hyperparameter file of EasyEdit. docs/migrate.md has the table of names."
WHICH = "Which file? One of EasyEdit's hparams/, for instance hparams/ROME/llama-7b.yaml"


def from_easyedit(words: list[str]) -> None:
    """Print the configuration, or write it.

    Args:
        words: What stands after `kedit from-easyedit`.

    Raises:
        KeditError: No such file, none of EasyEdit's, or of a method that kedit does not have.
    """
    parser = ArgumentParser(prog="kedit from-easyedit", exit_on_error=False, description=ABOUT)
    parser.add_argument("hparams", type=str | None, nargs="?", default=None, help=WHICH)
    parser.add_argument("--out", type=str | None, default=None, help="File to write; null: print it.")
    method = "The file's method, where it has no alg_name, as those of the ROME and MEMIT repositories."
    parser.add_argument("--method", type=str | None, default=None, help=method)
    args = parser.parse_args(words)
    if args.hparams is None:
        raise KeditError(WHICH)
    check_path("hparams", args.hparams)
    path = Path(args.hparams).expanduser()
    done = _translated(path, args.method)
    text = text_of(done, path.name)
    console = Console(highlight=False, soft_wrap=True)
    if args.out is not None:
        _write(Path(args.out), text)
        console.print(f"{args.out}: {_told(done)}", markup=False)
        console.print(f"To run it: kedit fit --config {args.out}", markup=False)
    elif console.is_terminal:
        console.print(Syntax(text, "yaml", theme="ansi_dark", background_color="default"))
    else:
        console.out(text, highlight=False, end="")


def _translated(path: Path, method: str | None) -> Translation:
    try:
        hparams = load_yaml(read_text(path))
        found = method_of(hparams, method)
        check_values(hparams)
        return translate(hparams, found)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        why = getattr(error, "problem", None) or "unreadable"
        raise KeditError(f"{path}: not valid YAML{where}: {why}") from None
    except KeditError as error:
        raise KeditError(f"{path}: {error}") from None


def _write(path: Path, text: str) -> None:
    check_path("out", str(path))
    try:
        with path.expanduser().open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise KeditError(f"out: {path} is there already; name another") from None
    except OSError as error:
        raise KeditError(f"out: {path} cannot be written: {error.strerror}") from None


def _told(done: Translation) -> str:
    parts = [f"{done.method.name}, {len(done.options)} options carried over"]
    counts = {"differ": done.differs, "without a counterpart": done.dropped, "unknown": done.unknown}
    parts += [f"{len(lines)} {what}" for what, lines in counts.items() if lines]
    return f"{', '.join(parts)}; its comments say which and why"
