"""docs/keep.md: its Python runs, and its table of kinds names all that there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import kedit
from kedit.delta.kinds import KINDS
from kedit.delta.serialization import save_delta
from tests.support.paths import ROOT

TEXT = (ROOT / "docs" / "keep.md").read_text(encoding="utf-8")
ALIAS = '"smollm2-135m"'


def test_its_python_runs(tmp_path: Path, tiny_folder: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model in the place of SmolLM2, and a delta in the place of the tutorial's."""
    monkeypatch.chdir(tmp_path)
    folder = tiny_folder("llama")
    lm = kedit.load_lm(kedit.LMConfig(folder))
    wide, narrow = lm.model.config.hidden_size, lm.model.config.intermediate_size
    delta = kedit.Delta({lm.arch.path("mlp_out", 1): kedit.Factors(torch.ones(wide, 1), torch.ones(1, narrow))})
    save_delta("runs/tutorial/deltas/eiffel", delta, {"model_fingerprint": lm.fingerprint})
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
    assert ALIAS in code
    names: dict[str, Any] = {}
    exec(compile(code.replace(ALIAS, repr(folder)), "docs/keep.md", "exec"), names)
    assert names["edited"].dtype == torch.bfloat16
    ids = torch.tensor([lm.encode("The capital of France is")])
    with torch.no_grad(), kedit.edited(lm.model, delta):
        wanted = lm.model(input_ids=ids).logits
        found = names["model"](input_ids=ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_every_kind_is_in_its_table() -> None:
    assert set(re.findall(r"^\| `([A-Z]\w+)`", TEXT, re.MULTILINE)) == {kind.__name__ for kind in KINDS}
