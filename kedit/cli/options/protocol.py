"""`protocol: NAME`: its settings lie below the user's; one that the user sets otherwise is refused.

The parser says what the user has set (a parse without defaults), and takes the protocol's settings as words behind the
user's. So each is checked as any other option, and the saved configuration holds them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from shlex import quote
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from kedit.cli.options.quiet import brief_log
from kedit.errors import KeditError, shown
from kedit.runtime.protocols import Protocol, protocol

_UNSET: Any = object()


def add_protocol(parser: ArgumentParser) -> None:
    """Adds the option."""
    parser.add_argument(
        "--protocol",
        type=str | None,
        default=None,
        help="How edits are made and measured, by a name of kedit ls protocols; null: as the other options say.",
    )


def in_force(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """The configuration that words describe, with the settings of the protocol that they name, if any.

    Args:
        parser: Of the whole command.
        words: `fit`, and what stands behind it.

    Raises:
        KeditError: There is no such protocol, or the words set one of its options otherwise.
    """
    plain = [word for word in words if not word.startswith("--print_config")]  # which ends the process
    config = parser.parse_args(plain)
    if config["fit"].get("protocol") is None:
        return config if len(plain) == len(words) else parser.parse_args(list(words))
    named = protocol(config["fit"].protocol)
    with brief_log("cli.options.layers"):  # how the options lie over each other was told before
        check_given(named, parser.parse_args(plain, defaults=False)["fit"])
        return parser.parse_args([*words, *(f"--{name}={_text(value)}" for name, value in named.settings.items())])


def check_given(named: Protocol, given: Namespace) -> None:
    """Refuse what is set against a protocol.

    Args:
        named: The protocol.
        given: What the user has set, and nothing else.

    Raises:
        KeditError: Names every such option, its value and the protocol's, in one line; a second line has the words that
            set them as the protocol does.
    """
    others: dict[str, str] = {}
    words: list[str] = []
    for name, value in named.settings.items():
        where, own = _given(given, name)
        if own is not _UNSET and own != value:
            has = _short(value) if where == name else "a group"
            others[where] = f"{where} {has}, not {_short(own)}"
            words += [f"--{name}", _typed(value)] if where == name else []
    if others:
        so = f"\nas {named.name} has it, at the end of the command: {' '.join(words)}" if words else ""
        raise KeditError(
            f"protocol: {named.name} has {'; '.join(others.values())}: leave that out or set it so, or leave out the "
            f"protocol{so}"
        )


@contextmanager
def asked_by(name: str | None) -> Iterator[None]:
    """Inside, an error about an option that the protocol of this name sets says so: the user has not set it."""
    try:
        yield
    except KeditError as error:
        option = str(error).partition(":")[0]
        if name is None or option not in protocol(name).settings:
            raise
        raise KeditError(f"{error}\n{option} is set by protocol {name}") from error


def _given(given: Namespace, option: str) -> tuple[str, Any]:
    """What an option is set to, and its name: that of a group above it where this is no group."""
    node: Any = given
    parts = option.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, Namespace) and "init_args" in node:
            node = node["init_args"]
        if not isinstance(node, Namespace):
            return ".".join(parts[:depth]), node
        if part not in node:
            return option, _UNSET
        node = node[part]
    return option, node


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _typed(value: Any) -> str:
    """A value as one types it in a shell; a string that has control characters in quotes that bash and zsh resolve."""
    text = _plain(value) if isinstance(value, list) and all(map(_is_word, value)) else _text(value)
    if text.isprintable():
        return quote(text)
    escaped = text.encode("unicode_escape").decode().replace("'", r"\'")
    return f"$'{escaped}'"


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()


def _short(value: Any) -> str:
    return shown(value, 60) if isinstance(value, str) and not value.isidentifier() else str(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else value
