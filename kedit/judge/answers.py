"""The free answers in the rows of a run, each with what exact match says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kedit.errors import KeditError, shown

SIDES = ("before", "after")
PREFERRED = ("wild", "generated", "port")
"""Which answers are judged where the user names none: the first of these that the rows have."""

HOW = "--metrics.scoring.wild '[rewrite, paraphrase]'"


@dataclass(frozen=True)
class Answer:
    """One free answer.

    Attributes:
        case_id: The record.
        measured_at: The moment of its row.
        kind: Kind of probe.
        text: The prompt.
        answer: What it should be.
        side: `before` or `after` the edit.
        said: What the model wrote.
        exact_match: Whether the run's own comparison of strings takes it for the answer.
        field: Which free answer it is: `wild`, `generated`, ...
    """

    case_id: str
    measured_at: str
    kind: str
    text: str
    answer: str
    side: str
    said: str
    exact_match: bool
    field: str = PREFERRED[0]

    @property
    def content(self) -> tuple[str, str, str]:
        """What the judge sees: equal answers are judged once."""
        return self.text, self.answer, self.said

    def as_row(self) -> dict[str, Any]:
        """For a line of `judge.jsonl`."""
        return asdict(self)


def fields_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The kinds of free answer that some rows have: `wild`, `generated`, `port`, ...; the preferred ones first."""
    found: dict[str, None] = {}
    for row in rows:
        for probe in row["probes"]:
            for score in (probe["before"], probe["after"]):
                found |= dict.fromkeys(_field(key) for key in score or {} if _is_text(key))
    return sorted(found, key=lambda name: PREFERRED.index(name) if name in PREFERRED else len(PREFERRED))


def answers_of(
    rows: Iterable[Mapping[str, Any]], field: str, measured_at: str, sides: Sequence[str], kinds: Sequence[str] = ()
) -> list[Answer]:
    """The answers of one field at one moment, in the rows' order.

    Args:
        rows: Of `results.jsonl`.
        field: `wild`, `generated`, ...
        measured_at: The moment.
        sides: `before`, `after` or both.
        kinds: Kinds of probe; none: all.
    """
    found = []
    for row in rows:
        if row["measured_at"] != measured_at:
            continue
        for probe in row["probes"]:
            for side in sides:
                score = probe[side] or {}
                said = score.get("generated" if field == "generated" else f"{field}_generated")
                if said is None or (kinds and probe["kind"] not in kinds):
                    continue
                match = bool(score.get(f"{field}_match"))
                about = (str(row["case_id"]), measured_at, probe["kind"], probe["text"], probe["answer"])
                found.append(Answer(*about, side, str(said), match, field))
    return found


def chosen_field(fields: Sequence[str], wanted: str | None) -> str:
    """The field that is judged.

    Raises:
        KeditError: The run has no free answers, or none of that field; says which option makes them.
    """
    if not fields:
        raise KeditError(f"run: its rows hold no free answers to judge; this option of kedit fit makes them:\n{HOW}")
    if wanted is not None and wanted not in fields:
        more = f"\n{HOW} makes those of wild" if wanted == "wild" else ""
        raise KeditError(f"answers: the rows have no {shown(wanted, 40)}; they have {', '.join(fields)}{more}")
    return wanted or fields[0]


def _is_text(key: str) -> bool:
    return key == "generated" or key.endswith("_generated")


def _field(key: str) -> str:
    return key.removesuffix("_generated")
