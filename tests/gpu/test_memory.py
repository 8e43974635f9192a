"""Memory on a GPU: what a run takes does not grow with its edits, and work that does not fit is cut, not dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.gpu.conftest import Run, rows
from tests.support.small_runs import QUICK_ROME

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="counts a GPU's memory")]

MANY = {"edit.lanes": 48, "data.batch_size": 48, "model.contexts.lengths": "[[10,10]]"}


@pytest.fixture
def whole_memory() -> Iterator[None]:
    """The limit of a test is lifted afterwards."""
    torch.cuda.empty_cache()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def peak_of(run: Run, name: str, n: int, options: dict[str, Any]) -> int:
    """Most bytes that a run held."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run(name, n, options)
    return torch.cuda.max_memory_allocated()


def test_more_edits_take_no_more_memory(run: Run) -> None:
    options = QUICK_ROME | {"edit.regime": "sequential", "edit.lanes": 1}
    few, many = peak_of(run, "few", 4, options), peak_of(run, "many", 24, options)
    assert many < 1.1 * few


def test_more_lanes_take_more_memory_but_not_more_models(run: Run) -> None:
    one = peak_of(run, "one", 48, QUICK_ROME | MANY | {"edit.lanes": 1})
    many = peak_of(run, "many", 48, QUICK_ROME | MANY)
    assert one < many < 48 * one


@pytest.mark.usefixtures("whole_memory")
def test_lanes_that_do_not_fit_are_halved(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """With a fifth less memory than 48 lanes take, all edits are made, and one line at most says that they were cut."""
    peak = peak_of(run, "free", 48, QUICK_ROME | MANY)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.8 * peak / total)
    folder = run("capped", 48, QUICK_ROME | MANY)
    assert [row["status"] for row in rows(folder)] == ["edited"] * 48
    assert sum("memory" in record.getMessage() for record in caplog.records if record.levelname == "WARNING") <= 1
