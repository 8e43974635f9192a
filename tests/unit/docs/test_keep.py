"""docs/keep.md: its table of kinds names all that there are. tests/runs/test_code_blocks.py runs what is in it."""

from __future__ import annotations

import re

from kedit.delta.kinds import KINDS
from tests.support.paths import ROOT

TEXT = (ROOT / "docs" / "keep.md").read_text(encoding="utf-8")


def test_every_kind_is_in_its_table() -> None:
    assert set(re.findall(r"^\| `([A-Z]\w+)`", TEXT, re.MULTILINE)) == {kind.__name__ for kind in KINDS}
