"""`kedit config`: the experiments that come with kedit: list them, show one, copy one to change it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from kedit.cli.options.positionals import positionals_first
from kedit.errors import KeditError, shown
from kedit.runtime.option_values import check_path
from kedit.runtime.shipped import any_path, shipped_configs, shipped_sweeps
from kedit.runtime.yaml_text import load_yaml, read_text

log = logging.getLogger(__name__)

USAGE = """\
usage: kedit config COMMAND

  list [WORD...]    name, method and model of every experiment that has all the words:  kedit config list memit llama
  list --sweeps     the sweep files (kedit sweep NAME);  list --reference: the pages of all options of a method
  show NAME         a file as it is, with its comments:  kedit config show rep_smollm2
  show NAME --full  every option, with its default, as the run would have it
  copy NAME [FILE]  a copy in this folder, to change it:  kedit config copy rep_smollm2 mine.yaml

A NAME is enough wherever a file is asked for: kedit fit --config rep_smollm2, kedit sweep smollm2. A file of that name
in this folder, or in its configs/ or slurm/sweeps/, goes first.
"""
REFERENCE = "reference/"
WHICH = "Name or path of a configuration, or of a sweep file."


@dataclass(frozen=True)
class _Entry:
    """A line of the list."""

    name: str
    method: str
    model: str
    what: str


def config(words: list[str]) -> None:
    """Run one of the commands.

    Args:
        words: What stands after `kedit config`.

    Raises:
        KeditError: No such command, no such file, or a copy that would overwrite one.
    """
    if not words or words[0] in ("-h", "--help"):
        Console(soft_wrap=True, highlight=False).print(USAGE, end="", markup=False)
        return
    known = {"list": _list, "show": _show, "copy": _copy}
    if words[0] not in known:
        raise KeditError(f"there is no command {shown(words[0])}; there are {', '.join(known)}")
    known[words[0]](words[1:])


def _list(words: list[str]) -> None:
    parser = ArgumentParser(
        prog="kedit config list", exit_on_error=False, description="The files that come with kedit."
    )
    parser.add_argument("word", nargs="*", default=[], help="Only files that have all of these words.")
    parser.add_argument("--sweeps", action="store_true", help="Sweep files in place of configurations.")
    parser.add_argument("--reference", action="store_true", help="Pages of all options of a method.")
    args = parser.parse_args(positionals_first(parser, words))
    entries = [entry for entry in _entries(args) if _has(entry, args.word)]
    if not entries:
        what = "sweep file" if args.sweeps else "configuration"
        raise KeditError(f"no {what} has {' and '.join(map(shown, args.word))} in its name, method, model or heading")
    console = Console(highlight=False)
    console.print(_table(entries))
    use = "kedit sweep NAME" if args.sweeps else "kedit fit --config NAME"
    files = "file" if len(entries) == 1 else "files"
    console.print(f"{len(entries)} {files}. {use} runs one; kedit config show NAME, copy NAME", soft_wrap=True)


def _entries(args: Any) -> Iterator[_Entry]:
    if args.sweeps:
        found = shipped_sweeps() | _local("slurm/sweeps")
    else:
        found = (
            shipped_configs()
            | _local("configs")
            | {f"{REFERENCE}{k}": v for k, v in _local("configs/reference").items()}
        )
        found = {name: path for name, path in found.items() if name.startswith(REFERENCE) == args.reference}
    for name, path in sorted(found.items()):
        yield _entry(name, path)


def _local(folder: str) -> dict[str, Path]:
    return {path.stem: path for path in Path(folder).glob("*.yaml")}


def _entry(name: str, path: Path) -> _Entry:
    try:
        text = read_text(path)
        content = load_yaml(text)
    except (KeditError, yaml.YAMLError):
        return _Entry(name, "", "", f"{path} cannot be read")
    what = next((line.removeprefix("#").strip() for line in text.splitlines()[:1] if line.startswith("#")), "")
    lm = _below(content, "lm")
    model = lm.get("name", "") if isinstance(lm, Mapping) else lm
    return _Entry(name, _method(_below(content, "model")), str(model or "").rpartition("/")[2], what)


def _method(model: Any) -> str:
    """`REP (ROME)`: the class, and that of its editor."""
    name = str(_below(model, "class_path") if isinstance(model, Mapping) else model or "").rpartition(".")[2]
    editor = _below(_below(model, "init_args"), "editor")
    return f"{name} ({_method(editor)})" if editor else name


def _below(content: Any, key: str) -> Any:
    return content.get(key) if isinstance(content, Mapping) else None


def _has(entry: _Entry, words: list[str]) -> bool:
    text = " ".join(astuple(entry)).lower()
    return all(word.lower() in text for word in words)


def _table(entries: list[_Entry]) -> Table:
    """Columns that are empty throughout are left out."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = [name for name in ("name", "method", "model", "what") if any(getattr(entry, name) for entry in entries)]
    for name in names:
        table.add_column(name, no_wrap=name == "name", overflow="fold")
    for entry in entries:
        table.add_row(*(Text(getattr(entry, name)) for name in names))
    return table


def _show(words: list[str]) -> None:
    parser = ArgumentParser(prog="kedit config show", exit_on_error=False, description="Print a file.")
    parser.add_argument("name", type=str | None, nargs="?", default=None, help=WHICH)
    parser.add_argument(
        "--full", action="store_true", help="Every option with its default, as the run would have them."
    )
    args = parser.parse_args(words)
    path = _path(args.name)
    text = _full(path) if args.full else read_text(path)
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(Syntax(text, "yaml", theme="ansi_dark", background_color="default"), soft_wrap=True)
    else:
        console.out(text, highlight=False, end="")


def _full(path: Path) -> str:
    """What `kedit fit` makes of a file before it runs."""
    content = load_yaml(read_text(path))
    if isinstance(content, Mapping) and "configs" in content:
        raise KeditError(f"full: {path.stem} is a sweep file; kedit sweep {path.stem} --dry-run lists its tasks")
    from kedit.cli.commands.fit import fit
    from kedit.cli.options.first_look import first_look  # here: the first of them takes seconds

    log.info("null: the model's or the method's own value, which the run looks up")
    words = ["--config", str(path), "--print_config"]
    first_look(words)
    said = io.StringIO()
    with redirect_stdout(said):
        try:
            fit(words)
        except SystemExit as stop:
            if stop.code:
                raise
    return said.getvalue()


def _copy(words: list[str]) -> None:
    parser = ArgumentParser(prog="kedit config copy", exit_on_error=False, description="Copy a file, to change it.")
    parser.add_argument("name", type=str | None, nargs="?", default=None, help=WHICH)
    parser.add_argument(
        "file", type=str | None, nargs="?", default=None, help="The copy; null: its name, in this folder."
    )
    args = parser.parse_args(words)
    path = _path(args.name)
    if args.file is not None:
        check_path("file", args.file)
    copy = Path(args.file or path.name).expanduser()
    if copy.is_dir():
        copy /= path.name
    try:
        with copy.open("xb") as file:
            file.write(path.read_bytes())
    except FileExistsError:
        raise KeditError(f"{copy} is there already; name another: kedit config copy {args.name} FILE") from None
    except OSError as error:
        raise KeditError(f"{copy} cannot be written: {error.strerror}") from None
    Console(highlight=False, soft_wrap=True).print(f"{copy}: a copy of {path.name}. {_use(path, copy)}", markup=False)


def _use(path: Path, copy: Path) -> str:
    if path.suffix == ".sbatch":
        return f"To run it: sbatch {copy} CONFIG"
    if path.stem == "cluster":
        return f"To use it: kedit slurm submit SWEEP --config {copy}"
    return f"To run it: kedit {'sweep' if 'configs' in (load_yaml(read_text(path)) or ()) else 'fit --config'} {copy}"


def _path(name: str | None) -> Path:
    if name is None:
        raise KeditError("which file? kedit config list names them, for instance rome_smollm2")
    check_path("name", name)
    return any_path(name)
