"""Mutants of kedit's own configurations: seeded, of the values, of the structure, and of the text."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import yaml

from tests.support.paths import ROOT

CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "reference").glob("*.yaml")])

ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**70,
    -(2**70),
    1e400,
    float("nan"),
    -float("inf"),
    "",
    "x",
    "null",
    "nan",
    "a\nb",
    "\0",
    "\x1b[31mred",
    "é" * 300,
    "../../..",
    "/proc/nope",
    "~nobody/x",
    "a" * 5000,
    "${oc.env:HOME}",
    "[1, 2",
    "{a: 1}",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    {"class_path": "os.system", "init_args": {"command": "true"}},
    {"class_path": "kedit.errors.KeditError"},
    {"class_path": 3},
    {"class_path": ""},
    {"class_path": "nowhere.Nothing"},
    {"class_path": "ROME", "init_args": []},
    {"class_path": "ROME", "init_args": None},
    {"init_args": {}},
    "ROME",
    "kedit.methods.ROME",
    "kedit",
    "os.path",
    "json.JSONDecoder",
    ".",
    "a..b",
    "2020-01-01",
    "0x1f",
    "1_000",
    "1e5",
    3.5,
    -0.0,
)
PIECES = ("\t", "\0", "- ", ": ", "&a ", "*a", "{", "}", "[", "!!python/name:os.system ", "\n---\n", "\ufeff", "'", '"')


def mutants(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` texts of configurations, with what was done to each."""
    rng = random.Random(seed)
    for _ in range(count):
        path = rng.choice(CONFIGS)
        text = path.read_text(encoding="utf-8")
        if rng.random() < 0.6:
            content = copy.deepcopy(yaml.safe_load(text))
            what = [_change(content, rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
            yield f"{path.name}: {what}", yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass")
        else:
            yield _spoil(path.name, text, rng)


def _change(content: Any, rng: random.Random) -> str:
    """One value below is replaced, removed, renamed, or gets a neighbour."""
    places = list(_places(content, ""))
    name, holder, key = rng.choice(places)
    what = rng.choice(("value", "value", "value", "value", "remove", "rename", "add", "swap"))
    if what == "value" or not isinstance(holder, dict):
        holder[key] = value = rng.choice(ODD)
        return f"{name} = {value!r:.60}"
    if what == "remove":
        del holder[key]
    elif what == "rename":
        names = (f"{key}x", 3, None, True, "", "a.b", "class_path", "__class__", f"{key}+")
        holder[rng.choice(names)] = holder.pop(key)
    elif what == "add":
        holder[rng.choice(("extra", "init_args", "class_path", "__path__", "dict_kwargs", 1))] = rng.choice(ODD)
    else:
        _, other, at = rng.choice(places)
        holder[key] = copy.deepcopy(other[at])
    return f"{what} {name}"


def _places(value: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(inside):
        yield f"{name}.{key}", value, key
        yield from _places(one, f"{name}.{key}")


def _spoil(name: str, text: str, rng: random.Random) -> tuple[str, bytes]:
    lines = text.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    what = rng.choice(("cut", "insert", "double", "indent", "delete", "bytes", "utf-16", "move"))
    if what == "cut":
        lines[at:] = [lines[at][: rng.randrange(len(lines[at]) + 1)]]
    elif what == "insert":
        place = rng.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:place] + rng.choice(PIECES) + lines[at][place:]
    elif what == "double":
        lines.insert(rng.randrange(len(lines)), lines[at])
    elif what == "indent":
        lines[at] = rng.choice((" ", "  ", "    ", "\t")) + lines[at]
    elif what == "delete":
        del lines[at : at + rng.randrange(1, 4)]
    elif what == "move":
        lines.insert(rng.randrange(len(lines)), lines.pop(at))
    content = "".join(lines).encode()
    if what == "utf-16":
        content = "".join(lines).encode("utf-16")
    elif what == "bytes":
        place = rng.randrange(len(content))
        content = content[:place] + rng.randbytes(rng.randrange(1, 5)) + content[place + 1 :]
    return f"{name}: {what} at line {at + 1}", content
