"""`EditSchedule`: every record is edited once, whatever the width; and no Lightning is needed for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kedit.data.schedule import EditSchedule
from kedit.request import EditRecord, EditRequest, fingerprint_of


def records(n: int) -> list[EditRecord]:
    return [
        EditRecord(EditRequest(str(i), "The tag of {} is", f"item {i}", "x" * (1 + 7 * i % 5)), ()) for i in range(n)
    ]


def ids(found: list[EditRecord]) -> list[str]:
    return [record.request.case_id for record in found]


@pytest.mark.parametrize(("n", "size", "width"), [(7, 3, 1), (7, 3, 2), (8, 2, 2), (1, 4, 3), (12, 2, 4)])
def test_processes_edit_every_record_once(n: int, size: int, width: int) -> None:
    parts = [EditSchedule(records(n), size, width=width, rank=rank) for rank in range(width)]
    seen = [ids(part.batch_of(epoch)) for epoch in range(parts[0].epochs) for part in parts]
    assert [case for batch in seen for case in batch] == [str(i) for i in range(n)]
    assert all(len(batch) <= size for batch in seen)
    assert parts[0].batch_of(0)  # an epoch has work for the first process at least
    assert parts[0].batch_of(parts[0].epochs - 1)
    assert parts[-1].batch_of(parts[-1].epochs) == []


def test_done_after_counts_the_batches_of_all_processes() -> None:
    schedule = EditSchedule(records(7), 2, width=3, rank=1)
    assert (len(schedule.batches), schedule.epochs) == (4, 2)
    assert [schedule.index_of(epoch) for epoch in range(2)] == [1, 4]
    assert [schedule.done_after(epoch) for epoch in (-1, 0, 1, 5)] == [0, 3, 4, 4]


def test_order_of_editing_and_order_of_the_data() -> None:
    schedule = EditSchedule(records(40), 2, sort_by_length=True)
    assert schedule.edited_in() == [record for batch in schedule.batches for record in batch]
    assert schedule.edited_in(3) == schedule.edited_in()[:6]
    assert schedule.edited_in(0) == []
    assert ids(schedule.edited_in()) != ids(schedule.records)
    assert schedule.fingerprint == fingerprint_of(records(40))


def test_another_way_to_form_batches() -> None:
    schedule = EditSchedule(records(3), 1, form=lambda of, size, sort: [list(of)])
    assert [ids(batch) for batch in schedule.batches] == [["0", "1", "2"]]


def test_lightning_is_not_needed() -> None:
    code = "import sys, kedit.data.schedule, kedit.data.chosen_records; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
