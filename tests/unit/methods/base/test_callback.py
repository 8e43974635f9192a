"""Rows go from who has them to all who add to them, then to all who keep them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Callback

from kedit.methods.base.callback import EditCallback, push_rows
from kedit.runtime import distributed

Rows = list[dict[str, Any]]


class Watcher(EditCallback):
    """Numbers the rows that it sees, and keeps what is complete."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kept: list[Rows] = []

    def on_rows(self, trainer: Any, module: Any, rows: Rows, batch: Any) -> None:
        for i, row in enumerate(rows):
            row[self.name] = i

    def on_complete_rows(self, trainer: Any, module: Any, rows: Rows) -> None:
        self.kept.append([dict(row) for row in rows])


def pushed(regime: str, rows: Rows) -> list[Watcher]:
    watchers = [Watcher("first"), Watcher("second")]
    trainer: Any = SimpleNamespace(callbacks=[watchers[0], Callback(), watchers[1]])
    module: Any = SimpleNamespace(regime=regime)
    push_rows(trainer, module, rows)
    return watchers


def test_rows_are_added_to_by_all_before_any_keeps_them() -> None:
    for watcher in pushed("sequential", [{"case_id": "a"}, {"case_id": "b"}]):
        assert watcher.kept == [[{"case_id": "a", "first": 0, "second": 0}, {"case_id": "b", "first": 1, "second": 1}]]


def test_without_rows_nobody_is_called() -> None:
    assert [watcher.kept for watcher in pushed("single", [])] == [[], []]


@pytest.mark.parametrize(("regime", "kept"), [("single", ["there", "here"]), ("batch", ["here"])])
def test_rows_of_all_processes(regime: str, kept: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the single regime each has records of its own; otherwise all have the same ones."""
    monkeypatch.setattr(distributed, "gather", lambda rows: [[{"case_id": "there"}], rows])
    watchers = pushed(regime, [{"case_id": "here"}])
    assert [[row["case_id"] for row in rows] for rows in watchers[0].kept] == [kept]
