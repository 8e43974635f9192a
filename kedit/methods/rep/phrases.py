"""Phrases after a name, any name: what lets a gate learn the subject's trace in the words that follow it.

Other names of a subject are often the name and an apposition ("X, the painter from Bergen"). The last token of such a
name carries little of the subject, and a record has too few of them to learn from. These phrases are our own, fit
any subject roughly, and say nothing true about it; the same ones after other subjects are negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

PHRASES = (
    "{}, an author of many books",
    "{}, the painter of that school",
    "{}, a player of the first rank",
    "{}, a thinker of a former century",
    "{}, the head of the party",
    "{}, a singer from the north",
    "{}, a voice of the movement",
    "{}, a star of the screen",
    "{}, a town by the river",
    "{}, the old capital",
    "{}, a region in the east",
    "{}, the peak in the range",
    "{}, a company of some size",
    "{}, an institute for research",
    "{}, the club with a long history",
    "{}, a group of musicians",
    "{}, the show of that year",
    "{}, a story in several parts",
    "{}, the tune of the summer",
    "{}, a model of the brand",
    "{}, the tool for the office",
    "{}, a machine for the road",
    "{} the Elder",
    "{} (the one in question)",
)


def drawn(count: int, random: Random) -> Sequence[str]:
    """`count` of the phrases, or all of them."""
    return random.sample(PHRASES, min(count, len(PHRASES)))
