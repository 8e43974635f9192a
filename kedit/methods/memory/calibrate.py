"""From which similarity on a fact is about a prompt: learnt from facts that nobody edits. No model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kedit.delta.fact_index import Index, VectorIndex, WordIndex
from kedit.errors import KeditError
from kedit.methods.memory.facts import Background
from kedit.model.sentence_encoder import SentenceEncoder
from kedit.request import EditRecord

MOST = 500  # facts that the threshold is learnt from; word counts are of all
_SAME = ("paraphrase", "rewording")  # kinds of probe that ask for the fact itself in other words


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it did on the facts that it was learnt from.

    Attributes:
        threshold: The least similarity of a fact that is used.
        found: Share of the paraphrases whose similarity to their fact is at least that.
        mistaken: Share of the prompts of which another fact is at least so similar.
    """

    threshold: float
    found: float
    mistaken: float


def calibrate(records: Sequence[EditRecord], encoder: SentenceEncoder | None = None) -> Calibration:
    """The threshold that best tells paraphrases of a fact from prompts of other facts.

    Two halves of the facts take turns: one is the memory, the other gives the background that words are weighed by, as
    if the facts were new. Right answers are the similarities of paraphrases to their own fact; wrong ones those of each
    fact's prompt to the most similar fact of another subject. The threshold has the largest difference of the two
    shares above it, and lies in the middle between the similarities beside it. Neighbourhood probes are not looked at.

    Args:
        records: Facts that are not edited.
        encoder: Finds facts by embeddings instead of words.

    Raises:
        KeditError: There are fewer than four facts, or no paraphrases.
    """
    right: list[float] = []
    wrong: list[float] = []
    for half in (0, 1):
        mine = list(records[half::2])
        mine = mine[:: max(1, -(-2 * len(mine) // MOST))]
        index = _index(mine, records[1 - half :: 2], encoder)
        subjects = np.array([str(r.request.subject or r.request.text).casefold() for r in mine])
        for i, record in enumerate(mine):
            right += [float(index.alike(p.text)[i]) for p in record.probes if p.kind in _SAME]
            others = index.alike(record.request.text)[subjects != subjects[i]]
            wrong += [float(others.max())] if len(others) else []
    if len(records) < 4 or not right or not wrong:
        raise KeditError(
            "model.calibration: a threshold is learnt from at least four facts with paraphrases; give a file that has "
            "them, or set model.threshold"
        )
    return _best(np.array(right), np.array(wrong))


def _index(mine: Sequence[EditRecord], others: Sequence[EditRecord], encoder: SentenceEncoder | None) -> Index:
    prompts = [record.request.text for record in mine]
    if encoder is not None:
        by_vector = VectorIndex(encoder)
        for prompt, vector in zip(prompts, encoder.embed(prompts), strict=True):
            by_vector.add(prompt, {}, vector)
        return by_vector
    background = Background.of(others)
    by_word = WordIndex(background.texts)
    for prompt in prompts:
        by_word.add(prompt, background.about(prompt))
    return by_word


def _best(right: np.ndarray, wrong: np.ndarray) -> Calibration:
    values = np.unique(np.concatenate([right, wrong, [0.0, 1.0]]))
    cuts = (values[1:] + values[:-1]) / 2
    found = (right[None] >= cuts[:, None]).mean(1)
    mistaken = (wrong[None] >= cuts[:, None]).mean(1)
    best = int(np.argmax(found - mistaken))
    return Calibration(float(cuts[best]), float(found[best]), float(mistaken[best]))
