"""What a delta's card says: which requests were edited, of which model, and the numbers of its run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedit.delta.apply import carries_delta
from kedit.errors import KeditError
from kedit.model.fingerprint import fingerprint
from kedit.model.lm import LM
from kedit.request import EditRequest
from kedit.runtime.run_folder import SUMMARY

ABOUT = {"method", "editor", "model", "model_fingerprint", "dtype", "regime", "seed"}
BESIDE = {"format", "checksums", "requests", "provenance", "protocol", "results", "data", "parts", "conflicts"}
"""Keys of a card that are no settings of its method."""


def check_same_model(card: Mapping[str, Any], lm: LM) -> None:
    """Refuse a delta of another model.

    Raises:
        KeditError: The card's fingerprint is not that of the model.
    """
    wanted = card.get("model_fingerprint")
    if wanted is not None and wanted != lm.fingerprint:
        raise KeditError(
            f"this delta is of another model, {str(card.get('model'))[:80]} ({str(wanted)[:80]}, "
            f"{card.get('dtype', 'float32')}); here it is {lm.name} ({lm.fingerprint}, "
            f"{str(lm.dtype).removeprefix('torch.')})"
        )


def check_unedited(lm: LM) -> None:
    """Refuse a model that carries a delta, or whose weights are not those that it was loaded with; one pass over them.

    Raises:
        KeditError: It carries an edit.
    """
    if carries_delta(lm.model) or fingerprint(lm.model) != lm.fingerprint:
        raise KeditError(f"{lm.name} carries an edit already, which would be exported too: take it out first")


def requests_of(card: Mapping[str, Any]) -> list[EditRequest]:
    """The requests that were edited, each once, in their order; those that failed are left out.

    Raises:
        KeditError: An entry is no request.
    """
    found: dict[str, EditRequest] = {}
    for i, entry in enumerate(card.get("requests") or []):
        try:
            if entry.get("status", "edited") != "edited":
                continue
            case = str(entry.get("case_id", i))
            found[case] = EditRequest(case_id=case, **dict(entry["request"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise KeditError(f"entry {i} of 'requests' in the delta's card is no request ({error})") from None
    return list(found.values())


def settings_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options, as its card has them."""
    return {key: value for key, value in card.items() if key not in ABOUT | BESIDE}


def method_of(card: Mapping[str, Any]) -> str:
    """The method, with the editor that it wraps."""
    method = str(card.get("method", "unknown"))
    return f"{card['editor']} + {method}" if isinstance(card.get("editor"), str) else method


def with_numbers(folder: Path, card: dict[str, Any]) -> dict[str, Any]:
    """The card, with protocol, data and results of the run in whose folder the delta still lies."""
    parent = folder.absolute().parent
    file = (parent.parent if parent.name == "deltas" else parent) / SUMMARY
    if "results" in card or not file.is_file():
        return card
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        about, data = summary["method"], summary["data"]
        if any(about[key] != card.get(key) for key in ("model_fingerprint", "method", "seed")):
            return card
        numbers = {"protocol": summary["protocol"], "results": summary["results"]}
        return card | numbers | {"data": {key: data[key] for key in ("name", "records", "fingerprint")}}
    except (OSError, ValueError, KeyError, TypeError):
        return card  # no summary of kedit's: a card without numbers
