"""`MethodCard`: what `kedit ls methods` says of a method, beside its regimes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Cost = Literal["none", "low", "medium", "high"]
"""Time of an edit, measured in passes of the model over its prompt: none; fewer than 10; up to some hundreds; more."""


@dataclass(frozen=True)
class MethodCard:
    """A method in one line of a table.

    Attributes:
        paper: Authors, venue and year, e.g. "Meng et al., NeurIPS 2022".
        changes: What an edit changes, e.g. "one FFN matrix, rank 1", "nothing: a text before the prompt".
        needs: What must be there beforehand, of "subject", "statistics", "training data", "true target"; may be empty.
        cost: Time of an edit.
    """

    paper: str
    changes: str
    needs: tuple[str, ...] = ()
    cost: Cost = "medium"
