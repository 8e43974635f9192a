"""Which records and probes are chosen; which records are not edited, and why, for the log and a run's results."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from kedit.data.derived import DERIVED
from kedit.data.robust_queries import REPLACED, QueryConfig
from kedit.errors import KeditError
from kedit.request import EditRecord, Probe

if TYPE_CHECKING:
    from kedit.model.lm import LM

log = logging.getLogger(__name__)

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "no_target": "without a target",
        "no_op": "no-op edits",
        "no_subject": "whose prompt does not name the subject",
        "not_marked": "not marked as known",
        "not_known": "not known",
        "not_fit": "do not fit the model",
        "too_long": "fail, too long for the model's context",
        "skip": "skip",
        "limit": "limit",
        "not_asked": "not asked, the limit was reached",
    }
)
"""Why a record is not edited -> how the log says it. A record has one reason: the first that was met."""

READING = ("no_target", "no_op", "no_subject")
"""Reasons of the readers, which never make a record of what they leave out."""


class NoneKnown(KeditError):
    """No record is left, as the model knows none of them (or none is marked as known)."""


class Method(Protocol):
    """What a data module asks of the method that edits its records."""

    regime: str
    steps_per_batch: int

    @property
    def lm(self) -> LM:
        """The unedited model."""
        ...

    def use_lm(self, lm: LM) -> None:
        """Takes another one in its place."""
        ...

    def prepare_records(self, records: list[EditRecord]) -> list[EditRecord]:
        """Checks records and gives those to edit, in the same order."""
        ...

    def unfit_records(self, records: list[EditRecord]) -> dict[str, str]:
        """Of which records a text does not fit into the model's context, by id, and why."""
        ...


def notice(where: str, in_file: int, left_out: Mapping[str, int]) -> str:
    """One line: how many records there are, how many are edited, and why the others are not.

    Args:
        where: Of what: `"in the file"`.
        in_file: All records.
        left_out: Numbers of records by reason (`REASONS`).
    """
    lost = sum(left_out.values())
    line = f"{in_file} record{'' if in_file == 1 else 's'} {where}, {in_file - lost} to edit"
    reasons = ", ".join(f"{left_out[key]} {said}" for key, said in REASONS.items() if left_out.get(key))
    return f"{line}: {lost} left out ({reasons})" if reasons else line


def each_by_itself(records: list[EditRecord], name: str | None) -> list[EditRecord]:
    """The same records, whose ids must differ: results are keyed by them.

    Raises:
        KeditError: Two have the same. Readers of files see to it; this is for data sets of the user's own.
    """
    counted = Counter(record.request.case_id for record in records)
    if counted and counted.most_common(1)[0][1] > 1:
        twice = next(record.request for record in records if counted[record.request.case_id] > 1)
        raise KeditError(f"{name}: several records have the case_id of {twice.name}; each needs its own")
    return records


def marked_known(records: Sequence[EditRecord], name: str | None) -> list[EditRecord]:
    """The records that their file marks as known.

    Args:
        records: With `known` in their `meta`.
        name: What messages call the data.

    Raises:
        KeditError: There is no such mark, or something else than true or false.
    """
    for record in records:
        if "known" not in record.meta:
            raise KeditError(f"data.known: {name} has no 'known' field; use true (asks the model) or false")
        if not isinstance(record.meta["known"], bool):
            raise KeditError(f"{name}, {record.request.name}: field 'known' must be true or false")
    return [record for record in records if record.meta["known"]]


def enough_of(
    pool: Sequence[EditRecord], need: int, choose: Callable[[list[EditRecord]], list[EditRecord]]
) -> tuple[list[EditRecord], int]:
    """What `choose` keeps of a pool that is put to it in portions, until there is enough; and how many were not."""
    portion = max(need, 64)
    kept: list[EditRecord] = []
    for start in range(0, len(pool), portion):
        kept += choose(list(pool[start : start + portion]))
        if len(kept) >= need:
            return kept, max(len(pool) - start - portion, 0)
    return kept, 0


def those_that_fit(
    records: Sequence[EditRecord], why_not: Mapping[str, str], name: str | None
) -> tuple[list[EditRecord], dict[str, tuple[EditRecord, str]]]:
    """The records that fit into the model's context, and the others by id, with the reason; the log tells of these.

    Args:
        records: All.
        why_not: The reason of each that does not fit, by id.
        name: What messages call the data.

    Raises:
        KeditError: None fits.
    """
    unfit = {r.request.case_id: (r, why_not[r.request.case_id]) for r in records if r.request.case_id in why_not}
    kept = [record for record in records if record.request.case_id not in unfit]
    if unfit and not kept:
        raise KeditError(f"{name}: no record fits into the model's context; {next(iter(why_not.values()))}")
    for _, reason in unfit.values():
        log.warning("%s. It fails, and the run goes on without it", reason)
    return kept, unfit


def check_kinds_asked(
    records: Sequence[EditRecord],
    asked: Collection[str],
    queries: QueryConfig | None,
    name: str | None,
    derived: Collection[str] = (),
) -> None:
    """Refuses kinds of probe that the records do not have, and will not have of `queries` or among the derived kinds.

    Raises:
        KeditError: Names them, and those that there are.
    """
    present = {name for record in records for probe in record.probes for name in (probe.kind, probe.subkind)}
    if queries is not None:
        present = (present - {REPLACED}) | set(queries.kinds)
    present |= set(derived)
    if missing := sorted(set(asked) - present):
        has = ", ".join(sorted(present))
        more = "; data.derived makes such" if set(missing) & set(DERIVED) else ""
        raise KeditError(f"data.probe_kinds: {name} has no {', '.join(missing)} probes; it has {has}{more}")


def with_chosen_probes(
    records: Sequence[EditRecord], kinds: Collection[str] | None, most: int | None
) -> list[EditRecord]:
    """The records with their probes of the wanted kinds (None: all), of each kind the first `most` (None: all).

    `portability` names all its groups, `portability.reasoning` one of them; `most` counts in each group, and tests.
    """
    return [replace(record, probes=_chosen(record.probes, kinds, most)) for record in records]


def _chosen(probes: Sequence[Probe], kinds: Collection[str] | None, most: int | None) -> tuple[Probe, ...]:
    kept, seen = [], defaultdict[str, set[object]](set)
    for number, probe in enumerate(probes):
        seen[probe.subkind].add(number if probe.test is None else probe.test)
        asked = kinds is None or probe.kind in kinds or probe.subkind in kinds
        if asked and (most is None or len(seen[probe.subkind]) <= most):
            kept.append(probe)
    return tuple(kept)


def with_subjects(records: list[EditRecord], who: str) -> list[EditRecord]:
    """The same records, which must all name their subjects.

    Raises:
        KeditError: One does not; names it, and `who` needs the subject.
    """
    for record in records:
        record.request.named(who)
    return records


def cut(records: Sequence[EditRecord], skip: int, limit: int | None) -> tuple[list[EditRecord], int, int]:
    """The first `limit` records (None: all) after the first `skip`; how many are passed over, before and after them."""
    chosen = list(records[skip : None if limit is None else skip + limit])
    skipped = min(skip, len(records))
    return chosen, skipped, len(records) - skipped - len(chosen)
