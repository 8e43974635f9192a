"""Half and mixed precision on a GPU: edits are made, and take effect as in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.gpu.conftest import Run, rows
from tests.support.pac_runs import TRAIN
from tests.support.small_runs import QUICK_MEMIT, QUICK_ROME

pytestmark = pytest.mark.gpu

STEPS = {"model.v_num_grad_steps": 20}
METHODS: dict[str, dict[str, Any]] = {
    "ROME": QUICK_ROME | STEPS,
    "MEMIT": QUICK_MEMIT | STEPS | {"edit.regime": "batch", "data.batch_size": 4},
    "PAC": {"model": "PAC", "model.train.lr": 0.01, "model.train.passes": TRAIN.passes, "model.trace.nodes": 8},
}
PRECISIONS = {
    "bfloat16": {"lm.dtype": "bfloat16"},
    "float16": {"lm.dtype": "float16"},
    "bf16-mixed": {"lm.dtype": "float32", "trainer.precision": "bf16-mixed"},
    "16-mixed": {"lm.dtype": "float32", "trainer.precision": "16-mixed"},
}


def rewrites(found: list[dict[str, Any]]) -> list[float]:
    """-log p of the new targets after the edits."""
    return [probe["after"]["nll_answer"] for row in found for probe in row["probes"] if probe["kind"] == "rewrite"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_edits_succeed_as_in_float32(run: Run, method: str, precision: str) -> None:
    """Every record is edited, every target becomes likelier, by at least half of what float32 gains."""
    full = rows(run("full", 4, METHODS[method] | {"lm.dtype": "float32"}))
    half = rows(run("half", 4, METHODS[method] | PRECISIONS[precision]))
    for found in (full, half):
        assert [(row["status"], row["error"]) for row in found] == [("edited", None)] * len(found)
    before = [probe["before"]["nll_answer"] for row in half for probe in row["probes"] if probe["kind"] == "rewrite"]
    edited, reference = (torch.tensor(rewrites(found)) for found in (half, full))
    assert bool((edited < torch.tensor(before)).all())
    start = torch.tensor(before).mean()
    assert float(start - edited.mean()) > 0.5 * float(start - reference.mean())
