"""Words without a name may stand anywhere, as in `kedit ask MODEL --delta DIR PROMPT`: argparse wants them together."""

from __future__ import annotations

from collections.abc import Iterable

from jsonargparse import ArgumentParser


def positionals_first(parser: ArgumentParser, words: Iterable[str]) -> list[str]:
    """The words of a command with those that belong to no option first, both in the order given.

    Args:
        parser: Knows which options take a value.
        words: What stands after the command; behind a `--` nothing is an option.
    """
    plain: list[str] = []
    options: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--":
            plain += left
        elif not word.startswith("-") or not word.strip("-"):
            plain.append(word)
        else:
            options.append(word)
            known = parser._option_string_actions
            alike = [action for name, action in known.items() if name.startswith(word.partition("=")[0])]
            action = known.get(word, alike[0] if alike and "=" not in word else None)  # argparse takes `--del` too
            if action is not None and action.nargs != 0:
                options += [value for value in (next(left, None),) if value is not None]
    return [*plain, *options]
