"""Changes of nested values, as JSON, YAML and checkpoints hold them: one at a place that chance chooses.

Everything is made from a seeded `random.Random`. What JSON cannot say from Python (very deep nesting, integers of
thousands of digits) is a mark, which `as_json` replaces in the text.
"""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

DEEP, HUGE = "@deep@", "@huge@"
Path = tuple[Any, ...]

ODD = (
    *("{}", "{", "}", "{0}", "{{}}", "%s", "\\", '"', "'", "\n", "\r\n", "\t", " ", "../", "~", "$HOME"),
    *(
        "\u0000",
        "\u2028",
        "\u0085",
        "\u200d",
        "\u200b",
        "\ufeff",
        "\u202e",
        "\u0301",
        "\ud800",
        "\udfff",
        "\u00a0",
        "\u3000",
    ),
    *("\u05d0\u05d1", "\U0001f468\u200d\U0001f469", "\u6771\u4eac", "\u0e01\u0e23\u0e38", "\x1b[31m"),
    *("</s>", "<|endoftext|>", "<s>"),
)
"""Pieces of text: braces, controls, invisible and broken characters, scripts, special tokens."""

IDS: tuple[Any, ...] = (
    *("..", ".", "", " ", "/", "a/b", "../../up", "/etc/passwd", "x" * 300, "\u00e9" * 200, "con", "NUL", "a\u0000b"),
    *("a\nb", "-rf", "~", "a" * 5000, "1", "2", "a", "a-2", "A", "\u2028", "\ud800"),
    *(0, -1, 1.0, True, None, [], {}, 10**30),
)
"""Values of an id."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3.5, 10**18, 10**30, -(10**400), float("nan"), float("inf"), float("-inf"), HUGE),
    *("", "  ", "text", "x" * 300, "y" * 20000, DEEP),
    *([], [[]], {}, {"a": 1}, [None], ["", 3], [{}], {"": ""}, {"str": "x"}, {"prompt": 3}),
)
"""Values of anything."""


def changed(value: Any, chance: Random, values: tuple[Any, ...] = VALUES) -> tuple[Any, str, Path]:
    """A copy with one change, what that was, and where."""
    value = copy.deepcopy(value)
    places = [path for path in paths(value) if path]
    if not places:
        return chance.choice(values), "all replaced", ()
    path = chance.choice(places)
    parent, key = at(value, path[:-1]), path[-1]
    kinds: list[Callable[[], str]] = [lambda: _replace(parent, key, chance, values)] * 4
    kinds += [lambda: _delete(parent, key), lambda: _nest(parent, key, chance)]
    if isinstance(parent, dict):
        kinds += [lambda: _misspell(parent, key, chance)] * 2
        kinds += [lambda: _swap(parent, key, chance), lambda: _add(parent, chance, values)]
    else:
        kinds += [lambda: _double(parent, key), lambda: _shuffle(parent, chance)]
    if isinstance(parent[key], str):
        kinds += [lambda: _rewrite(parent, key, chance)] * 6
    if isinstance(key, str) and "id" in key:
        kinds += [lambda: _replace(parent, key, chance, IDS)] * 6
    change = chance.choice(kinds)()
    return value, f"{'.'.join(map(str, path))[:80]}: {change}", path


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """All places of a nested value, itself first."""
    yield path
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield from paths(value[key], (*path, key))


def at(value: Any, path: Path) -> Any:
    """What is at a place."""
    for key in path:
        value = value[key]
    return value


def as_json(value: Any, chance: Random, **options: Any) -> str:
    """JSON text; the marks become what they stand for."""
    text = json.dumps(value, **options)
    depth = chance.choice([50, 900, 3000, 100_000])
    return text.replace(f'"{DEEP}"', "[" * depth + "]" * depth).replace(f'"{HUGE}"', chance.choice("-1") + "9" * 5000)


def odd_text(text: str, chance: Random) -> str:
    """The text with something odd in it, or in another form."""
    place = chance.choice([0, len(text), chance.randrange(len(text) + 1)])
    forms: list[Callable[[], str]] = [
        lambda: text[:place] + chance.choice(ODD) + text[place:],
        lambda: text[:place] + chance.choice(ODD) + text[place:],
        lambda: chance.choice(ODD) * chance.choice([1, 3, 400]),
        lambda: text.swapcase(),
        lambda: text.upper(),
        lambda: unicodedata.normalize("NFD", text + "\u00e9\u00fc\u00f1"),
        lambda: text[: chance.randrange(len(text) + 1)],
        lambda: text + " and so on" * chance.choice([30, 2000]),
        lambda: text[::-1],
        lambda: text + text,
    ]
    return chance.choice(forms)()


def misspelt(name: str, chance: Random) -> str:
    """A name with a slip of the pen."""
    place = chance.randrange(max(1, len(name)))
    return chance.choice(
        [
            name[:place] + name[place + 1 :],
            name[:place] + name[place : place + 1] * 2 + name[place + 1 :],
            name.upper(),
            name.replace("_", "-"),
            name + "s",
            name + " ",
            name + chance.choice(ODD),
            "",
            "x",
        ]
    )


def _replace(parent: Any, key: Any, chance: Random, values: tuple[Any, ...]) -> str:
    parent[key] = copy.deepcopy(chance.choice(values))
    return f"becomes {parent[key]!r:.60}"


def _delete(parent: Any, key: Any) -> str:
    del parent[key]
    return "deleted"


def _nest(parent: Any, key: Any, chance: Random) -> str:
    depth = chance.choice([1, 1, 2, 60])
    for _ in range(depth):
        parent[key] = {"a": parent[key]} if chance.random() < 0.3 else [parent[key]]
    return f"nested {depth} deep"


def _misspell(parent: dict[Any, Any], key: Any, chance: Random) -> str:
    new = misspelt(str(key), chance)
    items = [(new if name == key else name, value) for name, value in parent.items()]
    parent.clear()
    parent.update(items)
    return f"misspelt as {new!r:.60}"


def _swap(parent: dict[Any, Any], key: Any, chance: Random) -> str:
    other = chance.choice(list(parent))
    parent[key], parent[other] = parent[other], parent[key]
    return f"swapped with {other!r:.60}"


def _add(parent: dict[Any, Any], chance: Random, values: tuple[Any, ...]) -> str:
    name = chance.choice(["note", "known", "split", "loc_prompt", "__class__", "", "prompt", "target", "id", *ODD])
    parent[name] = copy.deepcopy(chance.choice(values))
    return f"beside it {name!r} of {parent[name]!r:.60}"


def _double(parent: list[Any], key: int) -> str:
    parent.insert(key, copy.deepcopy(parent[key]))
    return "doubled"


def _shuffle(parent: list[Any], chance: Random) -> str:
    chance.shuffle(parent)
    return "shuffled with its neighbours"


def _rewrite(parent: Any, key: Any, chance: Random) -> str:
    parent[key] = odd_text(parent[key], chance)
    return f"rewritten as {parent[key]!r:.60}"
