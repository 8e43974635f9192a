"""The kinds of changes that kedit's own files and checkpoints hold, in the order in which one module's are written.

A new kind is a file beside this one and a line here. A kind from elsewhere is given to `load_delta` and `unpack` by
name; where changes are ordered it comes after these.
"""

from __future__ import annotations

from collections.abc import Iterable

from kedit.delta.biases import BiasChange
from kedit.delta.change import Change
from kedit.delta.codebook import Codebook
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors
from kedit.delta.parameters import ParameterChange
from kedit.delta.pathways import Pathways
from kedit.delta.prompt_memory import PromptMemory
from kedit.delta.slices import Slices

KINDS: tuple[type[Change], ...] = (
    Factors,
    Slices,
    Dense,
    BiasChange,
    ParameterChange,
    Pathways,
    Codebook,
    PromptMemory,
)


def in_order(kinds: Iterable[type[Change]]) -> list[type[Change]]:
    """Each of `kinds` once, in the order of `KINDS`; others after them, as they come."""
    return sorted(dict.fromkeys(kinds), key=lambda kind: KINDS.index(kind) if kind in KINDS else len(KINDS))
