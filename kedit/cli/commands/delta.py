"""`kedit delta`: look at deltas, compare them, join them, and export them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from kedit.cli.commands import delta_tables as tables
from kedit.cli.commands.stats import device_of
from kedit.delta.serialization import CARD, TENSORS, load_delta, save_delta
from kedit.errors import KeditError, shown
from kedit.export.folder import check_free
from kedit.export.hf import DType, export_hf
from kedit.export.join import Part, compose, joined, merge
from kedit.export.loading import base_model
from kedit.export.measure import chosen, probabilities
from kedit.export.overlap import overlaps
from kedit.export.peft import export_peft
from kedit.export.requests import requests_of, with_numbers
from kedit.runtime.option_values import check_path

log = logging.getLogger(__name__)

USAGE = """\
usage: kedit delta show DIR                            what a delta changes, of which model, for which requests
       kedit delta diff A B                            where two deltas differ, and how alike they are
       kedit delta export DIR --to peft|hf --out NEW   as a PEFT adapter, or as an ordinary model folder
       kedit delta merge DIR DIR ... --out NEW         their sum as one delta, in as few directions as it has
       kedit delta compose DIR DIR ... [--out NEW]     in order, where the later one holds; says what conflicts

DIR is a folder with delta.safetensors and card.json: deltas/CASE_ID or delta of a run. kedit delta COMMAND --help lists
the options. A delta tells which subjects were edited: who has it can read them off.
"""
FOLDER = "A delta: deltas/CASE_ID or delta of a run."
MODEL = "Where the delta's model is: an alias, a folder or a hub id; null: the model that its card names."


def delta(words: list[str]) -> None:
    """Run one of the commands.

    Args:
        words: What stands after `kedit delta`.

    Raises:
        KeditError: No such command, or what the command says.
    """
    if not words or words[0] in ("-h", "--help"):
        Console(soft_wrap=True, highlight=False).print(USAGE, end="", markup=False)
        return
    if words[0] not in COMMANDS:
        raise KeditError(f"kedit delta has no command {shown(words[0])}; there are {', '.join(COMMANDS)}")
    COMMANDS[words[0]](words[1:])


def _show(words: list[str]) -> None:
    parser = _parser("show", "What a delta changes, of which model, and for which requests.")
    parser.add_argument("folder", type=str, help=FOLDER)
    parser.add_argument("--all", action="store_true", help="Every request and module, not the first ones alone.")
    args = parser.parse_args(words)
    part = _part(args.folder)
    card = with_numbers(Path(args.folder), dict(part.card))
    size = (Path(args.folder) / TENSORS).stat().st_size
    tables.show(Console(highlight=False), Part(part.name, part.delta, card), size, None if args.all else 20)


def _diff(words: list[str]) -> None:
    parser = _parser("diff", "Where two deltas differ: bits, modules, directions, requests, settings.")
    parser.add_argument("one", type=str, help=FOLDER)
    parser.add_argument("other", type=str, help=FOLDER)
    args = parser.parse_args(words)
    tables.diff(Console(highlight=False), _part(args.one), _part(args.other))


def _export(words: list[str]) -> None:
    parser = _parser("export", "A delta in a form that other tools load.")
    parser.add_argument("folder", type=str, help=FOLDER)
    to = "peft: a LoRA adapter, exact, for changes of low rank; hf: the whole model with the change in it or beside it."
    parser.add_argument("--to", type=Literal["peft", "hf"], required=True, help=to)
    parser.add_argument("--out", type=str, required=True, help="Folder to write; must not exist, or be empty.")
    dtype = "Of the written weights (hf); null: as the model is. What half precision rounds is measured and said."
    parser.add_argument("--dtype", type=DType | None, default=None, help=dtype)
    parser.add_argument("--model", type=str | None, default=None, help=MODEL)
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, ...; auto: a GPU where there is one.")
    args = parser.parse_args(words)
    _check_out(args.out)
    if args.to == "peft" and args.dtype is not None:
        raise KeditError("dtype: a PEFT adapter is written in float32, which is exact; leave the option out")
    part = _part(args.folder)
    card = with_numbers(Path(args.folder), dict(part.card))
    lm = base_model(Path(args.folder), card, args.model, device_of(args.device))
    if args.to == "peft":
        export_peft(part.delta, lm, args.out, card)
    else:
        export_hf(part.delta, lm, args.out, card, args.dtype)
    tables.exported(Console(highlight=False), Path(args.out))


def _merge(words: list[str]) -> None:
    parser = _parser("merge", "The sum of some deltas as one delta.")
    parser.add_argument("folders", type=str, nargs="+", help=FOLDER + " Two or more.")
    parser.add_argument("--out", type=str, required=True, help="Folder to write; must not exist, or be empty.")
    args = parser.parse_args(words)
    _check_out(args.out)
    parts = _parts(args.folders)
    total, card, ranks = merge(parts)
    save_delta(args.out, total, card)
    console = Console(highlight=False)
    tables.merged(console, ranks)
    if again := compose(parts)[1]:
        log.warning("%d prompts are edited twice, and both edits are in the sum: see kedit delta compose", len(again))
    console.print(f"{len(parts)} deltas in one: {args.out}", soft_wrap=True, markup=False)


def _compose(words: list[str]) -> None:
    parser = _parser("compose", "Several deltas in order as one: of one prompt the later edit holds.")
    parser.add_argument("folders", type=str, nargs="+", help=FOLDER + " Two or more, in their order.")
    parser.add_argument("--out", type=str | None, default=None, help="Folder to write; null: only say what conflicts.")
    measure = "Load the model and ask it every request: alone, and with all deltas."
    parser.add_argument("--measure", action="store_true", help=measure)
    parser.add_argument("--model", type=str | None, default=None, help=MODEL)
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, ...; auto: a GPU where there is one.")
    args = parser.parse_args(words)
    if args.out is not None:
        _check_out(args.out)
    parts = _parts(args.folders)
    kept, again = compose(parts)
    total, card = joined(kept, "compose")
    console = Console(highlight=False)
    tables.conflicts(console, again)
    tables.overlap(console, kept, overlaps([part.delta for part in kept]))
    if args.measure:
        lm = base_model(Path(args.folders[0]), parts[0].card, args.model, device_of(args.device))
        asked = [(part, request) for part in kept for request in chosen(part.requests)]
        alone = [p for part in kept for p in probabilities(lm, chosen(part.requests), part.delta)]
        requests = [request for _, request in asked]
        together = probabilities(lm, requests, total)
        tables.together(console, asked, probabilities(lm, requests), alone, together)
    if args.out is None:
        console.print(f"{len(kept)} of {len(parts)} deltas hold; nothing was written (--out NEW writes them as one)")
        return
    save_delta(args.out, total, card)
    console.print(f"{len(kept)} of {len(parts)} deltas in one: {args.out}", soft_wrap=True, markup=False)


COMMANDS: Mapping[str, Callable[[list[str]], None]] = MappingProxyType(
    {"show": _show, "diff": _diff, "export": _export, "merge": _merge, "compose": _compose}
)


def _parser(name: str, about: str) -> ArgumentParser:
    return ArgumentParser(prog=f"kedit delta {name}", exit_on_error=False, description=about)


def _check_out(out: str) -> None:
    check_path("out", out)
    check_free(out)


def _parts(folders: Sequence[str]) -> list[Part]:
    if len(folders) < 2:
        raise KeditError(f"one delta alone, {folders[0]}: there is nothing to join it with; give two or more")
    if doubled := next((folder for i, folder in enumerate(folders) if folder in folders[:i]), None):
        raise KeditError(f"{doubled} is given twice")
    return [_part(folder) for folder in folders]


def _part(name: str) -> Part:
    """A delta folder that a user named.

    Raises:
        KeditError: It is none; says what it is instead.
    """
    check_path("folder", name)
    folder = Path(name)
    if not folder.exists():
        raise KeditError(f"there is no folder {name}")
    if not (folder / CARD).is_file() and not (folder / TENSORS).is_file() and (hint := _instead(folder)):
        raise KeditError(f"{name} is no delta but {hint}")
    delta, card = load_delta(folder)
    requests_of(card)  # a card that says nonsense stops here
    return Part(name, delta, card)


def _instead(folder: Path) -> str | None:
    """What a folder is that holds no delta itself."""
    if not folder.is_dir():
        return "a file; give the folder around it"
    if (folder / "delta" / TENSORS).is_file():
        return f"the folder of a run; its delta is {folder / 'delta'}"
    if inside := sorted(path.parent for path in folder.glob(f"deltas/*/{TENSORS}")):
        return f"the folder of a run; it has {len(inside)} deltas: {inside[0]} for one"
    if inside := sorted(path.parent for path in folder.glob(f"*/{TENSORS}")):
        return f"a folder of {len(inside)} deltas: {inside[0]} for one"
    if (folder / "adapter_config.json").is_file():
        return "a PEFT adapter: PeftModel.from_pretrained(base, folder) loads it"
    if (folder / "config.json").is_file():
        return "a model folder: kedit.load_edited loads it"
    return None
