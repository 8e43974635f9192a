"""docs/tutorial.md: its records are what they seem. tests/runs/test_code_blocks.py does what it says."""

from __future__ import annotations

from pathlib import Path

from kedit.data import read_records
from tests.support.code_blocks import blocks_of
from tests.support.paths import ROOT


def test_its_records_are_kedit_s(tmp_path: Path) -> None:
    (block,) = [block for block in blocks_of(ROOT / "docs" / "tutorial.md") if block.title == "my_facts.jsonl"]
    (tmp_path / "my_facts.jsonl").write_text(block.text, encoding="utf-8")
    records = read_records(str(tmp_path / "my_facts.jsonl"))
    assert [record.request.case_id for record in records] == ["eiffel", "beethoven"]
    assert {probe.kind for record in records for probe in record.probes} == {"rewrite", "paraphrase", "neighborhood"}
