"""The code blocks of the documentation: where they stand, what they are written in, and the commands in them.

A fence says its language, and may say the file that a reader writes the block to (`title="my_method.yaml"`). In
`console` blocks a command begins with `$ ` and is followed by what it prints; in `bash` blocks every line is a command.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
SHELL = ("bash", "console")
LANGUAGES = (*SHELL, "python", "yaml", "json", "jsonl", "markdown", "text")
"""What a block may be; `text` is what is printed, pseudo code, and code for other programs."""

SETTING_UP = (
    ("pip", "install"),
    ("python3", "-m", "venv"),
    ("source", "venv/bin/activate"),
    ("export",),
    ("cd",),
    ("git", "clone"),
    ("sbatch",),
    ("pytest",),
)
"""Commands that no test of a page runs: they make the place where the others run."""

_FENCE = re.compile(r"^( *)(```+)(.*)$")
_INFO = re.compile(r'^(\w*)(?: title="([^"]+)")?$')
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")
_INDENTED = re.compile(r"^ {4,}(?:\$ )?(?:kedit|python3?|pip|git|pytest|sbatch)(?: (?!error)|$)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The page, from the root of the source tree.
        line: Where its first line stands in the page.
        language: What the fence says.
        title: The file that the block is, if the fence names one.
        text: What is in it.
    """

    page: str
    line: int
    language: str
    title: str | None
    text: str

    @property
    def place(self) -> str:
        """Page and line, as a message names them."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a block.

    Attributes:
        words: Its words, without variables that are set before it.
        env: Those variables.
        printed: What a `console` block says that it prints; empty elsewhere.
    """

    words: tuple[str, ...]
    env: dict[str, str]
    printed: str = ""


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page, in its order.

    Raises:
        AssertionError: A fence is not closed, or says more than a language and a title.
    """
    name, found = str(page.relative_to(ROOT)), []
    start: int | None = None
    fence, info, lines = "", "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        at = _FENCE.match(line)
        if at and start is None:
            start, fence, info, lines = number + 1, at[2], at[3].strip(), []
            indent = len(at[1])
        elif at and at[2].startswith(fence) and not at[3].strip():
            said = _INFO.match(info)
            assert said, f"{name}:{number}: a fence says its language, and may say a title: not {info!r}"
            found.append(Block(name, start or 0, said[1], said[2], "".join(line + "\n" for line in lines)))
            start = None
        elif start is not None:
            lines.append(line[indent:])
    assert start is None, f"{name}:{start}: the block has no end"
    return found


def unfenced(page: Path) -> list[str]:
    """Commands of a page that stand in an indented block, where nobody finds them."""
    text = page.read_text(encoding="utf-8")
    bare = re.sub(r"^( *```).*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line.strip() for line in bare.splitlines() if _INDENTED.match(line)]


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a shell block."""
    whole = block.text.replace("\\\n", " ")
    if block.language != "console":
        for line in whole.splitlines():
            yield from _split(line)
        return
    parts = re.split(r"^\$ ", whole, flags=re.MULTILINE)
    assert not parts[0].strip(), f"{block.place}: a console block begins with `$ ` and a command"
    for part in parts[1:]:
        line, _, printed = part.partition("\n")
        *before, last = _split(line)
        yield from before
        yield Command(last.words, last.env, printed)


def is_known(command: Command) -> bool:
    """Whether the tests know what to do with a command."""
    words = command.words
    if words[0] in ("kedit", "python") or is_script(words):
        return True
    return any(words[: len(setting)] == setting for setting in SETTING_UP)


def is_script(words: Sequence[str]) -> bool:
    """Whether a command is a shell script of the source tree, which is looked for and not run."""
    name = words[1] if words[0] == "bash" and len(words) > 1 else words[0]
    return "/" in name and (ROOT / name).is_file()


def values(block: Block) -> list[Any]:
    """What a `json` block holds: a value, or several one after another."""
    decoder, found, rest = json.JSONDecoder(), [], block.text.strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].lstrip()
    return found


def _split(line: str) -> Iterator[Command]:
    """The commands of a line, which `&&` joins; comments are left out."""
    words = shlex.split(line, comments=True)
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        first, words = words[:end], words[end + 1 :]
        n = next((i for i, word in enumerate(first) if not _ASSIGNMENT.match(word)), len(first))
        assert first[n:], f"no command in {line!r}"
        yield Command(tuple(first[n:]), dict(word.split("=", 1) for word in first[:n]))
