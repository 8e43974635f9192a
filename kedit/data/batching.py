"""Records to edit batches, and the loader that repeats one batch for an epoch. Nothing of Lightning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kedit.request import EditRecord, EditRequest
from kedit.text.prompts import split

Batches = list[list[EditRecord]]
WINDOW = 16  # edit batches; sorting stays within a window, so that records stay near their place


def form_batches(records: Sequence[EditRecord], size: int, sort_by_length: bool = False) -> Batches:
    """Cuts records into edit batches of `size`; the last may be smaller.

    Args:
        records: In the order to edit them.
        size: Requests in an edit batch.
        sort_by_length: Sort by `suffix_length` inside windows of 16 batches; records of equal length keep
            their order.
    """
    ordered = list(records)
    if sort_by_length:
        starts = range(0, len(ordered), WINDOW * size)
        windows = (ordered[start : start + WINDOW * size] for start in starts)
        ordered = [record for window in windows for record in sorted(window, key=suffix_length)]
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def form_groups(groups: Sequence[Sequence[EditRecord]], size: int) -> Batches:
    """Edit batches of whole groups, in order, of at most `size` requests; a larger group is a batch by itself.

    Args:
        groups: Records that must be edited together.
        size: Requests in an edit batch.
    """
    batches: Batches = []
    for group in groups:
        if batches and len(batches[-1]) + len(group) <= size:
            batches[-1] += group
        else:
            batches.append(list(group))
    return batches


def suffix_length(record: EditRecord) -> int:
    """Characters from the subject's end to the target's end: what replay recomputes at each step.

    Without a subject, those of the whole prompt and the target.
    """
    request = record.request
    return len(_after_subject(request)) + len(request.target_new)


def _after_subject(request: EditRequest) -> str:
    return request.text if request.subject is None else split(request.prompt)[1]


class EpochSteps:
    """One epoch's loader: the same edit batch, `steps` times.

    A plain iterable with a length, which is all Lightning asks of a loader: a DataLoader would have its
    batches sharded by a DistributedSampler, and an IterableDataset with a length draws a warning.
    """

    def __init__(self, batch: list[EditRecord], steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[EditRecord]]:
        for _ in range(self.steps):
            yield self.batch
