"""Every message that docs/troubleshooting.md quotes is one that the code can still say."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT

GAP = "…"  # what differs in a message
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


def texts() -> Iterator[str]:
    """Every string of the code, with a gap for what is put into it."""
    for file in [*sorted(ROOT.glob("kedit/**/*.py")), *sorted(ROOT.glob("callbacks/*.py"))]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
                yield "".join(str(part) for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[ds]", GAP, node.value)


SAID = "\n\n".join(dict.fromkeys(texts()))


def test_there_are_enough() -> None:
    assert len(QUOTED) >= 30
    assert len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("message", QUOTED)
def test_the_message_is_still_said(message: str) -> None:
    fixed = [part for part in message.split(GAP) if part.strip(" :;,.()")]
    assert fixed, "nothing but gaps"
    assert re.search(r"[^\n]*?".join(re.escape(part) for part in fixed), SAID), message
