"""`results.jsonl` of a run, guarded by the ledger of its lines: cut back, appended to, checked, read again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedit.errors import KeditError
from kedit.runtime.ledger import LEDGER, Ledger, compare, put_right, told
from kedit.runtime.run_folder import CHECKPOINT, RESULTS, append_rows, keep_rows, read_rows

log = logging.getLogger(__name__)


class ResultsFile:
    """The result lines of a run. Iterating reads them from the disk, one at a time: there may be many.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RESULTS
        self._ledger = Ledger(folder / CHECKPOINT.parent / LEDGER)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return read_rows(self.path)

    def begin(self, batches: int, edits: int, checkpoint: tuple[Path, Any] | None) -> None:
        """Cuts the file of an interrupted run back to the lines that its checkpoint vouches for.

        Args:
            batches: Edit batches that are done; 0 in a fresh run.
            edits: Records in them.
            checkpoint: The checkpoint that is gone on from, and what `card` gave it.
        """
        if batches and checkpoint is not None and self._restore(*checkpoint):
            return
        keep_rows(self.path, batches, edits)
        self._ledger.adopt(self.path)

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Writes rows and flushes them to the disk.

        Raises:
            KeditError: The disk is full or the folder cannot be written; what was there stays.
        """
        self._ledger.note(rows, append_rows(self.path, rows))

    def card(self) -> dict[str, Any]:
        """What a checkpoint keeps, to vouch for the lines so far."""
        return self._ledger.save()

    def check(self) -> list[str]:
        """Says which lines were lost, altered or doubled since they were written, and puts the file right.

        Returns:
            The lines that cannot be had again.
        """
        return self._compare(self.path)

    def _restore(self, checkpoint: Path, card: Any) -> bool:
        """The lines that the checkpoint vouches for, from where it is; False where that cannot be told."""
        try:
            self._ledger.restore(checkpoint.parent / LEDGER, card)
        except KeditError as error:
            log.warning("the result lines of the edits before are not checked: %s", error)
            return False
        self._compare(checkpoint.parent.parent / RESULTS)
        return True

    def _compare(self, source: Path) -> list[str]:
        """Holds a results file against the ledger, says what is wrong, and puts the run's own right; what is lost."""
        found = compare(source, self._ledger.entries)
        for line in told(source, found, self._ledger.entries):
            log.warning("%s", line)
        if not found.right or source.resolve() != self.path.resolve():
            put_right(self.path, source, found)
        return [str(entry) for entry in found.lost]
