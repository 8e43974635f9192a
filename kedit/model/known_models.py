"""The table of families that were tried: `known_models.json`, written by `python -m tests.support.families --write`.

A record of tests on tiny random models, not a permission: whatever a model is called, `kedit.forward.self_check` tries
it when it is bound. Nothing in kedit reads the table but `kedit ls models`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).with_suffix(".json")

State = Literal["right", "refused", "not tried", "wrong"]


@dataclass(frozen=True)
class Known:
    """What came of trying a tiny model of one type.

    Args:
        state: `right`: edits on it are what full forward passes say; `refused`: kedit says why it does not edit it;
            `not tried`: no tiny one could be built; `wrong`: never in the table.
        reason: Why not; empty where it is right.
    """

    state: State
    reason: str = ""


def table() -> dict[str, Known]:
    """`model_type` -> what came of it."""
    return {kind: Known(**entry) for kind, entry in _read()["models"].items()}


def versions() -> dict[str, str]:
    """Of transformers and torch, with which the table was made."""
    return _read()["versions"]


def write(versions: Mapping[str, str], found: Mapping[str, Known]) -> None:
    """Write the table.

    Args:
        versions: As `versions` gives them.
        found: As `table` gives it.
    """
    models = {
        kind: {"state": known.state} | ({"reason": known.reason} if known.reason else {})
        for kind, known in sorted(found.items())
    }
    FILE.write_text(json.dumps({"versions": dict(versions), "models": models}, indent=1) + "\n", encoding="utf-8")


def _read() -> Any:
    return json.loads(FILE.read_text(encoding="utf-8"))
