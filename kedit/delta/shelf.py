"""`Shelf`: the prompt memories that are in effect on a model or in a lane, ready to be asked, and where they are kept.

Memories that are written into a model are an attribute of it, as long as they are in it.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from kedit.delta.fact_index import Index, VectorIndex, WordIndex
from kedit.errors import KeditError
from kedit.model.sentence_encoder import SentenceEncoder

if TYPE_CHECKING:
    from kedit.delta.prompt_memory import PromptMemory

_SHELVES = "_kedit_shelves"  # attribute of a model


@dataclass(frozen=True)
class Found:
    """What should stand before a prompt.

    Attributes:
        pieces: Demonstrations, then facts, the most fitting last: what does not fit is left out from the beginning.
        lead: What stands between them and the prompt.
    """

    pieces: tuple[str, ...]
    lead: str


class Shelf:
    """Prompt memories of one rule. One is added in a time that depends on its own facts alone."""

    def __init__(self) -> None:
        self.memories: list[PromptMemory] = []
        self._index: Index | None = None
        self._numbers: dict[str, int] = {}  # prompt -> its number in the index
        self._said: list[str] = []  # by that number
        self._newest = array("q")  # by that number: a fact with a larger one is newer
        self._demonstrations: dict[str, None] = {}
        self._count = 0

    def add(self, memory: PromptMemory) -> None:
        """Takes up a memory; its facts replace those of the same prompts.

        Raises:
            KeditError: Memories of other settings are here already; nothing is taken up.
        """
        rule = memory.rule
        if self.memories and self.memories[0].rule != rule:
            raise KeditError(
                "prompt memories of different settings (IKE beside Retrieval, or other options) cannot be in a model "
                "at once: apply one after the other"
            )
        if self._index is None:
            folder = rule.encoder
            encoder = memory.encoder or (folder and SentenceEncoder(folder, rule.encoder_fingerprint))
            self._index = VectorIndex(encoder) if encoder else WordIndex(rule.background)
        for i, fact in enumerate(memory.facts):
            if (number := self._numbers.get(fact.prompt)) is None:
                number = self._numbers[fact.prompt] = len(self._said)
                self._index.add(fact.prompt, fact.counts, None if memory.vectors is None else memory.vectors[i])
                self._said.append("")
                self._newest.append(0)
            self._said[number], self._newest[number] = rule.said(fact.sentence), self._count
            self._count += 1
        self._demonstrations |= dict.fromkeys(memory.demonstrations)
        self.memories.append(memory)

    def find(self, text: str) -> Found | None:
        """What should stand before a prompt; None: nothing."""
        if self._index is None:
            return None
        rule = self.memories[0].rule
        newest = np.frombuffer(self._newest, dtype=np.int64)
        if rule.threshold is None:
            chosen = newest.argsort()
        else:
            alike = self._index.alike(text)
            near = (alike >= rule.threshold).nonzero()[0]
            chosen = near[np.lexsort((newest[near], alike[near]))][-rule.most :]
        facts = tuple(self._said[number] for number in chosen)
        return Found((*self._demonstrations, *facts), rule.lead) if facts else None


class Installed:
    """A shelf that is in a model; `remove` takes it out again, as a hook's handle does."""

    def __init__(self, model: nn.Module, shelf: Shelf) -> None:
        self._model, self._shelf = model, shelf

    def remove(self) -> None:
        """Once more does nothing."""
        shelves: list[Shelf] = self._model.__dict__.get(_SHELVES, [])
        shelves[:] = [shelf for shelf in shelves if shelf is not self._shelf]
        if not shelves:
            self._model.__dict__.pop(_SHELVES, None)


def install(model: nn.Module, shelf: Shelf) -> Installed:
    """Puts a shelf into a model, beside those that are there."""
    model.__dict__.setdefault(_SHELVES, []).append(shelf)
    return Installed(model, shelf)


def shelves_of(model: nn.Module) -> list[Shelf]:
    """Those in a model, in the order in which they were put there."""
    return model.__dict__.get(_SHELVES, [])
