"""`EditSchedule`: which records are edited together, in which epoch, and by which process. Nothing of Lightning.

A data module makes it; the module that is trained and the callbacks ask it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from kedit.data.batching import Batches, form_batches
from kedit.request import EditRecord, fingerprint_of

Form = Callable[[list[EditRecord], int, bool], Batches]
"""Makes edit batches of records, given their size and whether to sort by length, as `form_batches` does."""


@dataclass(frozen=True, eq=False)
class EditSchedule:
    """The edit batches of a run, in order. An epoch edits one of them, or one for each process.

    Attributes:
        records: The records to edit, in the data's order.
        size: Requests in an edit batch; the last one may be smaller, and so may those that hold whole groups.
        sort_by_length: Whether requests of like length share an edit batch (`form_batches`).
        width: Edit batches of an epoch: one for each process, where processes edit different ones; otherwise 1.
        rank: Which of an epoch's edit batches is this process's.
        form: How the records become edit batches.
    """

    records: list[EditRecord]
    size: int
    sort_by_length: bool = False
    width: int = 1
    rank: int = 0
    form: Form = form_batches

    @cached_property
    def batches(self) -> Batches:
        """The edit batches, in order."""
        return self.form(self.records, self.size, self.sort_by_length)

    @property
    def epochs(self) -> int:
        """Epochs in which all of them are edited."""
        return -(-len(self.batches) // self.width)

    def index_of(self, epoch: int) -> int:
        """The edit batch of this process in an epoch; not below the number of batches where nothing is left for it."""
        return epoch * self.width + self.rank

    def batch_of(self, epoch: int) -> list[EditRecord]:
        """The records that this process edits in an epoch; none where nothing is left for it."""
        index = self.index_of(epoch)
        return self.batches[index] if index < len(self.batches) else []

    def done_after(self, epoch: int) -> int:
        """Edit batches that are done, by whichever process, when an epoch has ended."""
        return min((epoch + 1) * self.width, len(self.batches))

    def edited_in(self, batches: int | None = None) -> list[EditRecord]:
        """The records of the first so many edit batches (None: of all), in the order in which they are edited."""
        return [record for batch in self.batches[:batches] for record in batch]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the records to edit, with their probes, in the data's order."""
        return fingerprint_of(self.records)
