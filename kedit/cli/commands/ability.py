"""`kedit ability`: what a model can do besides what was edited, with saved edits and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from kedit.cli.options.positionals import positionals_first
from kedit.cli.options.quiet import brief_log
from kedit.errors import KeditError
from kedit.runtime.files import check_writable, write_json
from kedit.runtime.option_values import check_path

USAGE = "kedit ability MODEL [--delta DIR ...] [--tasks kedit_choice,mmlu,gsm8k] [--limit N] [--out general.json]"
ABOUT = """\
What a model can do besides what was edited: tasks on the unedited model and, with --delta, on the edited one.
Nothing is exported: the edits are in the model's weights while it is measured.
"""


def ability(words: list[str]) -> None:
    """Measure, print the table, and write the figures where that is asked for.

    Args:
        words: What stands after the command.

    Raises:
        KeditError: No such model, delta or task, or the extra `kedit[lm-eval]` is missing.
    """
    args = _arguments(words)
    if args.model is None:
        raise KeditError(f"MODEL missing: {USAGE}")
    for folder in args.delta or []:
        check_path("delta", folder)
    if args.out is not None:
        check_path("out", args.out)
        check_writable(Path(args.out).parent, "out")
    from kedit.ability.scores import BEFORE, Measured, figures, figures_table  # heavy, and not needed for a slip
    from kedit.ability.settings import AbilityTasks, split_names
    from kedit.editing.held import load
    from kedit.editing.said import edited
    from kedit.model.chat import ChatOption
    from kedit.model.lm import LMConfig

    names = split_names(args.tasks)
    if not names:
        raise KeditError("tasks: none is named; give --tasks kedit_choice, or names of lm-evaluation-harness")
    about = (args.limit, args.num_fewshot, args.batch_size, args.include_path)
    tasks = AbilityTasks(names, *about, option="")
    tasks.check()
    with brief_log():
        lm = load(LMConfig(args.model), args.device)
        asked = lm.chatting(ChatOption("chat", "leave out --chat")) if args.chat else lm
        measured = []
        if args.delta:
            with edited(lm, *args.delta):  # first: a delta of another model is told before hours are spent
                measured = [Measured("edited", " ".join(args.delta), tasks.scores(asked, "of the edited model"))]
        measured.insert(0, Measured(BEFORE, "", tasks.scores(asked, "of the unedited model")))
    lines = figures(measured)
    Console(highlight=False).print(figures_table(lines))
    if args.out is not None:
        about = {"model": args.model, "deltas": args.delta or [], "settings": tasks.card() | {"chat": args.chat}}
        write_json(Path(args.out), {**about, "measured": [one.as_json() for one in measured], "figures": lines})


def _arguments(words: list[str]) -> Any:
    parser = ArgumentParser(prog="kedit ability", usage=USAGE, exit_on_error=False, description=ABOUT)
    model = "An alias (smollm2-135m), a local Hugging Face folder, or a hub id."
    parser.add_argument("model", type=str, nargs="?", default=None, metavar="MODEL", help=model)
    delta = "Folder of a saved edit, which is in effect; may be given several times."
    parser.add_argument("--delta", action="append", type=str, metavar="DIR", help=delta)
    tasks = "kedit_choice (80 questions that ship with kedit), and tasks of lm-evaluation-harness, commas between them."
    parser.add_argument("--tasks", type=str, default="kedit_choice", metavar="NAMES", help=tasks)
    limit = "The first so many questions of every task; null: all."
    parser.add_argument("--limit", type=int | None, default=None, metavar="N", help=limit)
    shots = "Examples before every question; null: as each task has it."
    parser.add_argument("--num-fewshot", "--num_fewshot", type=int | None, default=None, metavar="N", help=shots)
    size = "Rows of one batch of the harness."
    parser.add_argument("--batch-size", "--batch_size", type=int, default=8, metavar="N", help=size)
    path = "Folder with tasks of your own, as YAML files."
    parser.add_argument("--include-path", "--include_path", type=str | None, default=None, metavar="DIR", help=path)
    chat = "Ask as a user of a chat, through the tokenizer's chat template."
    parser.add_argument("--chat", action="store_true", help=chat)
    device = "auto (a GPU where there is one), cpu or cuda."
    parser.add_argument("--device", type=str, default="auto", metavar="NAME", help=device)
    out = "JSON file to write the figures to; null: only print them."
    parser.add_argument("--out", type=str | None, default=None, metavar="FILE", help=out)
    return parser.parse_args(positionals_first(parser, words))
