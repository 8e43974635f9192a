"""`kedit edit`: one fact, one line: sentences before and after, and the edit kept where that is asked for."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import ArgumentParser
from rich.console import Console

from kedit.cli.options.chat import add_chat
from kedit.cli.options.positionals import positionals_first
from kedit.cli.options.quiet import brief_log
from kedit.editing.probes import NEIGHBOURS, PARAPHRASES
from kedit.editing.requests import one_request, with_slot
from kedit.errors import CannotWrite, KeditError, at_least, cannot_write, shown
from kedit.runtime.files import check_writable
from kedit.runtime.option_values import check_path
from kedit.runtime.yaml_text import load_yaml

if TYPE_CHECKING:
    from kedit.editing.edit import Edit

USAGE = 'kedit edit MODEL "The capital of {} is" --subject France --target Lyon [--OPTION VALUE ...]'
ABOUT = """\
Edit one fact and see what the model says before and after: the prompt, other wordings of it, the same about other
subjects, and your own questions. Nothing is kept unless you say so (--save, --export-peft, --export-hf).
"""


def edit(words: list[str]) -> None:
    """Edit, print the table, and keep what is asked to be kept.

    Args:
        words: What stands after the command.

    Raises:
        KeditError: The fact, the method, an option or the model is not what it should be; the edit failed.
    """
    args = _arguments(words)
    given = {"MODEL": args.model, "PROMPT": args.prompt, "--subject": args.subject, "--target": args.target}
    if missing := [name for name, value in given.items() if value is None]:
        raise KeditError(f"{' and '.join(missing)} missing: which model, and which fact?\nFor instance: {USAGE}")
    one_request(args.prompt, args.subject, args.target, args.true_target)
    options = dict(_option(text) for text in args.set or [])
    at_least("paraphrases", args.paraphrases, 0)
    at_least("neighbours", args.neighbours, 0)
    folders = {"save": args.save, "export_peft": args.export_peft, "export_hf": args.export_hf}
    for name, folder in folders.items():
        if folder is not None:
            option = name.replace("_", "-")
            check_path(option, folder)
            check_writable(Path(os.path.expanduser(folder)), option, folder)
    from kedit.editing.make import edit as made  # heavy, and not needed to refuse a slip

    console = Console(highlight=False)
    template = with_slot(args.prompt, args.subject)
    if template != args.prompt:
        console.print(f"subject found in the prompt: {template}", markup=False, soft_wrap=True)
    with brief_log(), Console(stderr=True, highlight=False).status("starting") as status:

        def told(line: str) -> None:
            if line.startswith("editing"):
                status.stop()  # statistics and steps have bars of their own
            else:
                status.start()
                status.update(line)

        result = made(
            args.model,
            prompt=template,
            subject=args.subject,
            target=args.target,
            true_target=args.true_target,
            method=args.method,
            options=options,
            seed=args.seed,
            ask=args.ask or [],
            n_paraphrases=args.paraphrases,
            n_neighbours=args.neighbours,
            chat=args.chat or None,
            system=args.system,
            dtype=args.dtype,
            device=args.device,
            progress=True,
            told=told,
        )
    console.print(result.view())
    _keep(result, folders, console)
    _next(args, result, console)


def _keep(result: Edit, folders: dict[str, str | None], console: Console) -> None:
    """Saves and exports, and says where."""
    kept = {"save": ("the delta", result.save), "export_peft": ("PEFT", result.export_peft)}
    kept["export_hf"] = ("the edited model", result.export_hf)
    for name, (what, keep) in kept.items():
        folder = folders[name]
        if folder is None:
            continue
        try:
            keep(folder)
        except (OSError, CannotWrite) as error:
            if (message := cannot_write(error, Path(folder))) is None:
                raise
            raise KeditError(message) from error
        console.print(f"written: {folder} ({what}; it tells which fact was edited)", markup=False, soft_wrap=True)


def _next(args: Any, result: Edit, console: Console) -> None:
    """What to do now, in one or two lines."""
    asked = shlex.quote(result.requests[0].text)
    if not result.after[0].says_new:
        how = "try another --method (kedit ls methods), or put the fact in another way"
        console.print(
            f"the edited model does not say {args.target!r} to the prompt: {how}", markup=False, soft_wrap=True
        )
    model, chat = shlex.quote(args.model), " --chat" if args.chat else ""
    if args.save is None:
        line = "nothing was kept. To keep it, the same command with --save DIR; then: "
        line += f"kedit ask {model}{chat} --delta DIR {asked}"
    else:
        line = f"ask it: kedit ask {model}{chat} --delta {shlex.quote(args.save)} {asked}"
    console.print(line, markup=False, soft_wrap=True)


def _option(text: str) -> tuple[str, Any]:
    """A word `model.layer=7` as name and value."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise KeditError(f"set: expects NAME=VALUE, as in --set model.layer=7, not {shown(text)}")
    try:
        return name.strip(), load_yaml(value)
    except yaml.YAMLError:
        raise KeditError(f"set: the value of {name} is not valid YAML: {shown(value)}") from None


def _arguments(words: list[str]) -> Any:
    parser = ArgumentParser(prog="kedit edit", usage=USAGE, exit_on_error=False, description=ABOUT)
    model = "An alias (smollm2-135m), a local Hugging Face folder, or a hub id."
    parser.add_argument("model", type=str, nargs="?", default=None, metavar="MODEL", help=model)
    prompt = (
        'The beginning of a sentence, with {} where the subject goes ("The capital of {} is"), or the subject in it.'
    )
    parser.add_argument("prompt", type=str, nargs="?", default=None, metavar="PROMPT", help=prompt)
    parser.add_argument(
        "--subject", type=str, default=None, metavar="TEXT", help="What the fact is about, e.g. France."
    )
    parser.add_argument(
        "--target", type=str, default=None, metavar="TEXT", help="What the prompt should go on with, e.g. Lyon."
    )
    true = "What it goes on with now, where you know it: its probability is shown. Otherwise: what the model says."
    parser.add_argument("--true-target", type=str, default=None, metavar="TEXT", help=true)
    method = "A method (kedit ls methods), or a configuration such as rep_smollm2; its settings are those of the "
    method += "configuration that ships for the model."
    parser.add_argument("--method", type=str, default="rome", metavar="NAME", help=method)
    option = "A setting to be replaced, e.g. model.layer=7; may be given several times."
    parser.add_argument("--set", action="append", type=str, metavar="NAME=VALUE", help=option)
    ask = "A prompt of your own, asked before and after; may be given several times."
    parser.add_argument("--ask", action="append", type=str, metavar="PROMPT", help=ask)
    save = "Folder for the edit: a small file beside the model (kedit ask --delta, kedit.load_delta)."
    parser.add_argument("--save", type=str, default=None, metavar="DIR", help=save)
    peft = "Folder for the edit as a LoRA adapter of PEFT."
    parser.add_argument("--export-peft", type=str, default=None, metavar="DIR", help=peft)
    hf = "Folder for the whole edited model, in the Hugging Face form."
    parser.add_argument("--export-hf", type=str, default=None, metavar="DIR", help=hf)
    parser.add_argument(
        "--paraphrases", type=int, default=PARAPHRASES, metavar="N", help="Other wordings that are asked."
    )
    parser.add_argument(
        "--neighbours", type=int, default=NEIGHBOURS, metavar="N", help="Other subjects that are asked about."
    )
    add_chat(parser)
    parser.add_argument(
        "--seed", type=int | None, default=None, metavar="N", help="Of the edit; null: as configured, 0."
    )
    types = Literal["float32", "bfloat16", "float16"] | None
    parser.add_argument(
        "--dtype", type=types, default=None, metavar="TYPE", help="Of the weights; null: as configured, or as usual."
    )
    parser.add_argument(
        "--device", type=str, default="auto", metavar="NAME", help="auto (a GPU where there is one), cpu or cuda."
    )
    return parser.parse_args(positionals_first(parser, words))
