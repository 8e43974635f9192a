"""Facts: the data set that ships with kedit (`facts.jsonl`, written by its authors; see docs/data.md)."""

from __future__ import annotations

from importlib.resources import as_file, files

from kedit.data.readers.jsonl import read_records
from kedit.errors import KeditError
from kedit.request import EditRecord


def read_facts(split: str = "test") -> list[EditRecord]:
    """Reads the facts of one split, or of all with `"all"`, in the file's order.

    `meta` has `split`, `known` (greedy decoding of SmolLM2-135M gives the true target) and `greedy` (what it
    gives).

    Raises:
        KeditError: There is no such split.
    """
    with as_file(files("kedit.data.readers") / "facts.jsonl") as path:
        records = read_records(path)
    chosen = [record for record in records if split in ("all", record.meta["split"])]
    if not chosen:
        splits = sorted({record.meta["split"] for record in records})
        raise KeditError(f"data.split: Facts has no split {split!r}; it has {', '.join(splits)} and all")
    return chosen
