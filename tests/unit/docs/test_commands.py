"""Every `kedit fit` command of the documentation has options and configurations that there are."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator

import pytest

from kedit.cli.commands.fit import parsed
from tests.support.paths import ROOT
from tests.unit.docs.test_paths import PAGES, name_of

ELSEWHERE = ("your_method.md", "migrate.md")
"""Commands that name files written first: tests/runs/test_your_method.py, tests/unit/cli/test_from_easyedit.py."""
READY = importlib.util.find_spec("kedit.methods.base.edit_config") is not None  # `lm:` and `edit:` at the top


def commands() -> Iterator[tuple[str, str]]:
    """Page and command of every one in a fenced or an indented block."""
    for page in PAGES:
        if page.name in ELSEWHERE:
            continue
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?: {4})?kedit fit (.+)$", text, re.MULTILINE):
            if "..." not in line:
                yield name_of(page), " ".join(line.split())


COMMANDS = list(commands())


def test_there_are_some() -> None:
    assert len({page for page, _ in COMMANDS}) >= 8


@pytest.mark.skipif(not READY, reason="the pages are written for lm: and edit: at the top of a configuration")
@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}: {command}" for page, command in COMMANDS])
def test_the_command_is_understood(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    parsed(shlex.split(command, comments=True))
