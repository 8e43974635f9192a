"""What results keep of a data set: its name, options, fingerprint and counts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedit.data.datamodule import EditData


def card(data: EditData) -> dict[str, Any]:
    """The data set in results, JSON-able."""
    records = data.records
    derived = {"kinds": data.derived, "corpus": data.derived_corpus, "seed": data.derived_seed}
    more: dict[str, Any] = {"chat": True, "system": data.system} if data.chat else {}
    if data.conditions is not None:
        more["conditions"] = dataclasses.asdict(data.conditions)
    return more | {
        "name": data.title,
        "fingerprint": data.fingerprint,
        "records": len(records),
        "in_file": data.in_file,
        "left_out": {reason: n for reason, n in data.left_out.items() if n},
        "edit_batches": len(data.batches),
        "probes": _counted(probe.subkind for record in records for probe in record.probes),
        "limit": data.limit,
        "skip": data.skip,
        "shuffle_seed": data.shuffle_seed,
        "probe_kinds": data.probe_kinds,
        "max_probes": data.max_probes,
        "batch_size": data.schedule.size,
        "known": data.known,
        "sort_by_length": data.sort_by_length,
        "joiner": data.joiner,
        "joints": _counted(record.request.joint for record in records),
        "queries": None if data.queries is None else dataclasses.asdict(data.queries),
        **({"derived": derived} if data.derived else {}),
    }


def _counted(names: Iterable[str]) -> dict[str, int]:
    """How often each name comes, by name."""
    return dict(sorted(Counter(names).items()))
