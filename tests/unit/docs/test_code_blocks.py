"""Every code block of the documentation says what it is, and every command in one is known; the slow tier runs them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml

from kedit.cli.main import _commands
from kedit.cli.options.first_look import first_look
from kedit.cli.options.found import found_configs
from kedit.version import __version__
from tests.support.code_blocks import LANGUAGES, PAGES, SHELL, Block, blocks_of, commands_of, is_known, unfenced, values
from tests.support.paths import ROOT

WITH_BLOCKS = [page for page in PAGES if blocks_of(page)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_there_are_some() -> None:
    found = [block.language for page in PAGES for block in blocks_of(page)]
    assert len(found) > 80
    assert {"bash", "console", "python", "yaml", "json", "text"} <= set(found)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_says_its_language_and_commands_are_fenced(page: Path) -> None:
    assert [block.place for block in blocks_of(page) if block.language not in LANGUAGES] == []
    assert unfenced(page) == []


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_a_block_is_what_it_says(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for block in blocks_of(page):
        if block.language == "python":
            ast.parse(block.text, block.place)
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict), block.place
        elif block.language in ("json", "jsonl"):
            assert values(block), block.place
        elif block.language in SHELL:
            check_commands(block)
        elif block.language == "text":
            assert not block.text.startswith(("kedit ", "$ ", "pip ", "import ")), f"{block.place}: is it no text?"


def check_commands(block: Block) -> None:
    """Every line is a command that the tests run; of `kedit fit` the first look finds no slip."""
    found = list(commands_of(block))
    assert found, block.place
    for command in found:
        assert is_known(command), f"{block.place}: {command.words[0]}"
        assert "..." not in command.words, f"{block.place}: {' '.join(command.words)}"
        if command.words[:2] == ("kedit", "fit") and not command.env and "my_rome.yaml" not in command.words:
            first_look(found_configs(list(command.words[2:]), say=False))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_text_are_kedit_s(page: Path) -> None:
    named = set(re.findall(r"`kedit ([a-z][\w-]*)", page.read_text(encoding="utf-8")))
    assert named - set(_commands()) == set()


def test_the_wheel_is_of_this_version() -> None:
    (name,) = re.findall(r"kedit-[\w.]+-py3", (ROOT / "docs" / "install.md").read_text(encoding="utf-8"))
    assert name == f"kedit-{__version__}-py3"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("kedit ls", [["kedit", "ls"]]),
        ("pip install -e . && kedit ls # all", [["pip", "install", "-e", "."], ["kedit", "ls"]]),
        (
            "kedit show a \\\n    --limit 2",
            [["kedit", "show", "a", "--limit", "2"]],
        ),
    ],
)
def test_lines_are_split_as_a_shell_does(line: str, words: list[list[str]]) -> None:
    block = Block("page", 1, "bash", None, line + "\n")
    assert [list(command.words) for command in commands_of(block)] == words


def test_a_console_block_has_commands_and_what_they_print() -> None:
    block = Block("page", 1, "console", None, "$ kedit ls\nall\nof it\n$ A=1 kedit env\n")
    first, second = commands_of(block)
    assert (first.words, first.printed) == (("kedit", "ls"), "all\nof it\n")
    assert (second.words, second.env, second.printed) == (("kedit", "env"), {"A": "1"}, "")


@pytest.mark.parametrize("line", ["rm -r .", "kedits ls", "pip uninstall kedit"])
def test_other_commands_are_not_known(line: str) -> None:
    (command,) = commands_of(Block("page", 1, "bash", None, line))
    assert not is_known(command)
