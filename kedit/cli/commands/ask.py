"""`kedit ask`: what a model goes on to say, with saved edits or without."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.text import Text

from kedit.cli.options.chat import add_chat
from kedit.cli.options.positionals import positionals_first
from kedit.cli.options.quiet import brief_log
from kedit.errors import KeditError, within
from kedit.runtime.option_values import check_path

USAGE = 'kedit ask MODEL "Paris is the capital of" [--delta DIR ...] [--chat] [--tokens N]'
ABOUT = """\
What a model goes on to say, token by token the most probable, with saved edits in effect (--delta) or without.
"""
MOST = 4096


def ask(words: list[str]) -> None:
    """Print the continuation of every prompt.

    Args:
        words: What stands after the command.

    Raises:
        KeditError: No such model or delta, or a prompt that is too long.
    """
    args = _arguments(words)
    if args.model is None or not args.prompt:
        raise KeditError(f"{'MODEL and PROMPT' if args.model is None else 'PROMPT'} missing: {USAGE}")
    if not all(prompt.strip() for prompt in args.prompt):
        raise KeditError("PROMPT: it is empty")
    within("tokens", args.tokens, 1, MOST)
    for folder in args.delta or []:
        check_path("delta", folder)
    from kedit.editing.said import ask as continued  # heavy, and not needed to refuse a slip

    with brief_log(), Console(stderr=True, highlight=False).status(f"asking {args.model}"):
        texts = continued(
            args.model, args.prompt, None, args.delta or [], args.tokens, args.device, args.chat, args.system
        )
    console = Console(highlight=False, soft_wrap=True)
    between = "\n" if args.chat else ""
    for prompt, text in zip(args.prompt, texts, strict=True):
        console.print(Text.assemble(prompt.rstrip(" "), between, (text.rstrip(), "bold")))


def _arguments(words: list[str]) -> Any:
    parser = ArgumentParser(prog="kedit ask", usage=USAGE, exit_on_error=False, description=ABOUT)
    model = "An alias (smollm2-135m), a local Hugging Face folder, or a hub id."
    parser.add_argument("model", type=str, nargs="?", default=None, metavar="MODEL", help=model)
    parser.add_argument("prompt", type=str, nargs="*", default=[], metavar="PROMPT", help="What is to be continued.")
    delta = "Folder of a saved edit, which is in effect; may be given several times."
    parser.add_argument("--delta", action="append", type=str, metavar="DIR", help=delta)
    add_chat(parser)
    parser.add_argument("--tokens", type=int, default=20, metavar="N", help="New tokens of each prompt at most.")
    parser.add_argument(
        "--device", type=str, default="auto", metavar="NAME", help="auto (a GPU where there is one), cpu or cuda."
    )
    return parser.parse_args(positionals_first(parser, words))
