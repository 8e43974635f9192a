"""Several deltas of one model as one: their plain sum, or composed in order, and how they get in each other's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.errors import KeditError
from kedit.export.low_rank import EXACT, lost, recompressed
from kedit.export.requests import ABOUT, requests_of, settings_of
from kedit.request import EditRequest
from kedit.runtime.provenance import provenance


@dataclass(frozen=True)
class Part:
    """One delta to join.

    Attributes:
        name: How tables and cards call it: its folder.
        delta: The change.
        card: Its card.
    """

    name: str
    delta: Delta
    card: Mapping[str, Any]

    @property
    def requests(self) -> list[EditRequest]:
        """What was edited."""
        return requests_of(self.card)


@dataclass(frozen=True)
class Again:
    """One prompt that two deltas edit.

    Attributes:
        prompt: With its subject.
        earlier: Name of the part that edited it first, and what it should say then.
        later: Name of the part that edits it again, and what it should say.
        left_out: Whether the earlier part is left out: all that it edits is edited again.
    """

    prompt: str
    earlier: tuple[str, str]
    later: tuple[str, str]
    left_out: bool


@dataclass(frozen=True)
class Rank:
    """Directions of the joint change of one module, before and after those that say nothing new were taken away.

    Attributes:
        path: Of the module.
        before: Sum of the parts' ranks.
        after: Of the merged change.
        lost: ||before - after|| / ||before||.
    """

    path: str
    before: int
    after: int
    lost: float


def check_one_model(parts: Sequence[Part]) -> None:
    """Refuse deltas of different models.

    Raises:
        KeditError: Names two of them.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.card.get("model_fingerprint") != first.card.get("model_fingerprint"):
            raise KeditError(
                f"{part.name} is of another model than {first.name}: {_model(part)}, not {_model(first)}; "
                "deltas of one model alone can be joined"
            )


def merge(parts: Sequence[Part]) -> tuple[Delta, dict[str, Any], list[Rank]]:
    """The sum of all parts, with as few directions as it has.

    Returns:
        The delta, its card, and the modules whose rank was looked at.

    Raises:
        KeditError: Of different models, or changes that do not add up.
    """
    check_one_model(parts)
    total = Delta.concat([part.delta for part in parts])
    ranks, fewer = [], {}
    for path, factors in total.of_kind(Factors).items():
        small = recompressed(factors)
        share = 0.0 if small is factors else lost(factors, small)
        if share > 2 * EXACT:  # it is rounded once more, to float32
            small, share = factors, 0.0
        fewer[path] = small
        ranks.append(Rank(path, factors.rank, small.rank, share))
    return total.with_changes(fewer), joined_card(parts, "merge"), ranks


def compose(parts: Sequence[Part]) -> tuple[list[Part], list[Again]]:
    """Which parts hold, where later ones take the place of earlier ones.

    A part is left out where later parts edit every prompt of it again. A part of many requests of which some are edited
    again stays: its change cannot be told apart.

    Returns:
        The parts that stay, in order, and every prompt that is edited twice.

    Raises:
        KeditError: Of different models.
    """
    check_one_model(parts)
    last: dict[str, int] = {}  # prompt -> the part that edits it last
    for i, part in enumerate(parts):
        last |= dict.fromkeys((request.text for request in part.requests), i)
    gone = {
        i for i, part in enumerate(parts) if part.requests and all(last[request.text] > i for request in part.requests)
    }
    again = []
    for i, part in enumerate(parts):
        for request in part.requests:
            if (j := last[request.text]) > i:
                wins = next(r for r in reversed(parts[j].requests) if r.text == request.text)
                earlier, later = (part.name, request.target_new), (parts[j].name, wins.target_new)
                again.append(Again(request.text, earlier, later, i in gone))
    return [part for i, part in enumerate(parts) if i not in gone], again


def joined(parts: Sequence[Part], how: str) -> tuple[Delta, dict[str, Any]]:
    """The parts one after another, none of their numbers touched, and the card of the whole."""
    return Delta.concat([part.delta for part in parts]), joined_card(parts, how)


def joined_card(parts: Sequence[Part], how: str) -> dict[str, Any]:
    """A card that says all that the parts' cards agree in, every request, and which parts there were.

    Args:
        parts: In order.
        how: `merge` or `compose`.
    """
    first = parts[0].card
    agreed = [
        key for key in (*ABOUT, *settings_of(first)) if all(part.card.get(key) == first.get(key) for part in parts)
    ]
    card = {key: first[key] for key in sorted(agreed) if key in first}
    card["method"] = ", ".join(dict.fromkeys(str(part.card.get("method")) for part in parts))
    return card | {
        "joined": how,
        "parts": [
            {
                "name": Path(part.name).name,
                "method": part.card.get("method"),
                "tensors": (part.card.get("checksums") or {}).get("tensors"),
                "requests": [request.case_id for request in part.requests],
            }
            for part in parts
        ],
        "requests": _all_requests(parts),
        "provenance": provenance(),
    }


def _all_requests(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The entries of all cards; of two with one case id and other requests, the later is named after its part."""
    seen: dict[str, Any] = {}
    entries = []
    for part in parts:
        for entry in part.card.get("requests") or []:
            case = str(entry.get("case_id"))
            if seen.setdefault(case, entry.get("request")) != entry.get("request"):
                case = f"{case} ({Path(part.name).name})"
            entries.append({**entry, "case_id": case})
    return entries


def _model(part: Part) -> str:
    return f"{str(part.card.get('model'))[:80]} ({str(part.card.get('model_fingerprint'))[:40]})"
