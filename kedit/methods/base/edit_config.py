"""`EditConfig`: how requests are edited, whatever the method: the group `edit` of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Regime = Literal["single", "batch", "sequential"]


@dataclass
class EditConfig:
    """How requests are edited.

    Args:
        regime: `single`: each request on the unedited model. `batch`: the requests of an edit batch at once, on the
            unedited model. `sequential`: edit batches accumulate and are never rolled back. null: the method's usual
            one.
        lanes: Requests optimised side by side; 0 lets kedit choose.
        seed: Of the run; every edit batch seeds itself from this and its number.
        recompute: Let the layers above the edited ones keep nothing for v*'s backward pass and run twice: less memory a
            lane, a third more time.
        target_eos: Train the token that ends a text (in a chat, the turn) behind every target, for a model that stops
            after its answer. For every method that trains a target; what is measured stays as it is.
    """

    regime: Regime | None = None
    lanes: int = 0
    seed: int = 0
    recompute: bool = False
    target_eos: bool = False
