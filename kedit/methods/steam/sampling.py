"""Stratified sampling of references by relation (specs/steam.md 3)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from kedit.methods.steam.pool import Reference


def stratified(references: Sequence[Reference], most: int, seed: str, cap: int | None = None) -> list[int]:
    """Draws references one relation after the other, so that no relation outweighs another.

    Each relation's references are shuffled by the seed; then the relations, in sorted order, give one each in turn
    until there are enough or none is left. Relations' shares so differ by at most 1, unless one runs out.

    Args:
        references: To draw from; the result does not depend on their order.
        most: How many to draw at most.
        seed: Anything that names the draw.
        cap: Most of one relation; None: half of `most`, rounded up, where there are two relations or more.

    Returns:
        Indices into `references`, in the order drawn.
    """
    strata: dict[str, list[int]] = {}
    for i in sorted(range(len(references)), key=lambda i: (references[i].text, references[i].answer)):
        strata.setdefault(references[i].relation or "", []).append(i)
    for relation, members in strata.items():
        random.Random(f"{seed}/{relation}").shuffle(members)
    bound = cap or (most if len(strata) < 2 else -(-most // 2))
    drawn: list[int] = []
    for turn in range(bound):
        for relation in sorted(strata):
            if turn < len(strata[relation]) and len(drawn) < most:
                drawn.append(strata[relation][turn])
    return drawn
