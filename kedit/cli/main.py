"""Entry point: subcommands, and errors told in one or two lines with exit status 2."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentError
from rich.console import Console

from kedit.errors import KeditError

USAGE = """\
usage: kedit COMMAND [OPTIONS]

  fit     edit a model and measure what the edits did:  kedit fit --config configs/rome_smollm2.yaml
  stats   covariance of a model's keys, ahead of a run: kedit stats --lm.name smollm2-135m --layers [5]
  ls      methods, data sets, known models, configs:    kedit ls

kedit COMMAND --help lists the options of a command.
"""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        args: What stands after `kedit` on the command line; None takes it from there.

    Raises:
        SystemExit: With status 2 after an error of the user's, whose message went to standard error.
    """
    words = list(sys.argv[1:] if args is None else args)
    logging.basicConfig(level=os.environ.get("KEDIT_LOG", "INFO"), format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "filelock", "fsspec", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not words or words[0] in ("-h", "--help", "help"):
        Console(soft_wrap=True, highlight=False).print(USAGE, end="", markup=False)
        return
    commands = _commands()
    if words[0] not in commands:
        _fail(f"there is no command {words[0]!r}; there are {', '.join(commands)}")
    try:
        commands[words[0]](words[1:])
    except (KeditError, ArgumentError) as error:
        _fail(_brief(str(error)))


def _commands() -> dict[str, Callable[[list[str]], None]]:
    """Command -> what runs it; imported when needed, so that `kedit --help` is quick."""

    def fit(words: list[str]) -> None:
        from kedit.cli.fit import fit

        fit(words)

    def stats(words: list[str]) -> None:
        from kedit.cli.stats import stats

        stats(words)

    def ls(words: list[str]) -> None:
        from kedit.cli.ls import ls

        ls(words)

    return {"fit": fit, "stats": stats, "ls": ls}


def _brief(message: str) -> str:
    """The lines of a parser's nested message that name the option and the reason."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    if len(lines) <= 2:
        return "\n".join(lines)
    reasons = [line for line in lines[1:] if not line.startswith(("Problem with given class_path", "Traceback"))]
    return f"{lines[0]}\n{reasons[-1] if reasons else lines[-1]}"


def _fail(message: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"kedit: error: {message}", markup=False)
    raise SystemExit(2)
