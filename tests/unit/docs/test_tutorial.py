"""docs/tutorial.md: its records can be read, and its Python edits a model and leaves it as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import kedit
from kedit.data import read_records
from kedit.delta.serialization import save_delta
from tests.support.paths import ROOT

TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
ALIAS = '"smollm2-135m"'


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_its_records_are_kedit_s(tmp_path: Path) -> None:
    (lines,) = blocks("json")
    (tmp_path / "my_facts.jsonl").write_text(lines, encoding="utf-8")
    records = read_records(str(tmp_path / "my_facts.jsonl"))
    assert [record.request.case_id for record in records] == ["eiffel", "beethoven"]
    assert {probe.kind for record in records for probe in record.probes} == {"rewrite", "paraphrase", "neighborhood"}


def test_its_python_runs(
    tmp_path: Path, tiny_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tiny model in the place of SmolLM2, and a delta in the place of the run's."""
    monkeypatch.chdir(tmp_path)
    folder = tiny_folder("llama")
    lm = kedit.load_lm(kedit.LMConfig(folder))
    wide, narrow = lm.model.config.hidden_size, lm.model.config.intermediate_size
    factors = kedit.Factors(torch.ones(wide, 1), torch.ones(1, narrow))
    delta = kedit.Delta({lm.arch.path("mlp_out", 1): factors})
    save_delta("runs/tutorial/deltas/eiffel", delta, {"model_fingerprint": lm.fingerprint})

    names: dict[str, Any] = {}
    code = "\n".join(blocks("python"))
    assert ALIAS in code
    exec(compile(code.replace(ALIAS, repr(folder)), "docs/tutorial.md", "exec"), names)

    inside, after = capsys.readouterr().out.splitlines()
    assert inside != after
    weights = lm.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in names["lm"].model.state_dict().items())
    kept = kedit.load_lm(kedit.LMConfig("eiffel-in-rome"))
    assert kept.fingerprint != lm.fingerprint
