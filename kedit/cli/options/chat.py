"""`--chat` and `--system`, of the commands that ask a model."""

from __future__ import annotations

from jsonargparse import ArgumentParser


def add_chat(parser: ArgumentParser) -> None:
    """Adds both options."""
    chat = "Ask as a user of a chat, through the tokenizer's chat template; the target is the assistant's answer."
    parser.add_argument("--chat", action="store_true", help=chat)
    system = "The chat's system message; the template's own, if it has one, when left out."
    parser.add_argument("--system", type=str, default=None, metavar="TEXT", help=system)
