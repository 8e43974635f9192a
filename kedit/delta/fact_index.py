"""How like a text is to each of many prompts: `WordIndex`, by rare words in common, and `VectorIndex`, by embeddings.

A prompt is added in a time that depends on its own length alone. A look-up by words goes through the prompts that share
a word with the text. What a word weighs depends on all prompts, in whatever order they came.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from torch import Tensor

from kedit.model.sentence_encoder import SentenceEncoder
from kedit.text.terms import terms


class Index(Protocol):
    """Prompts, numbered from 0 in the order in which they were added."""

    def add(self, prompt: str, counts: Mapping[str, int], vector: Tensor | None) -> None:
        """Adds one.

        Args:
            prompt: The text.
            counts: Of its terms, in how many background texts they are; none: in no text.
            vector: Its embedding, `[d]`, where there is an encoder.
        """

    def alike(self, text: str) -> np.ndarray:
        """How like the text is to every prompt: `[n]` float64, at most 1."""
        ...


class WordIndex:
    """The share of a prompt's terms that a text has, each weighed by the cube of its inverse document frequency.

    sum(w of the prompt's terms that the text has) / sum(w of the prompt's terms), w = ln((2 + n) / (1 + df))^3. n is
    the number of background texts and prompts, df that of those that have the term. Other words of the text, as of
    a long context before a question, take nothing away: it is 1 for a text that holds the prompt. The cube lets words
    that name a subject outweigh those of a whole question about another one (docs/methods/retrieval.md).

    Args:
        background: Number of background texts.
    """

    def __init__(self, background: int) -> None:
        self._background = background
        self._ids: dict[str, int] = {}
        self._found = array("q")  # term -> texts and prompts that have it
        self._prompts: list[array[int]] = []  # term -> the prompts that have it
        self._owners, self._terms = array("q"), array("q")  # of every term of every prompt
        self._n = 0
        self._weighed: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, prompt: str, counts: Mapping[str, int], vector: Tensor | None = None) -> None:
        """Adds a prompt, in a time that depends on its length alone."""
        for term in terms(prompt):
            number = self._ids.setdefault(term, len(self._ids))
            if number == len(self._prompts):
                self._prompts.append(array("q"))
                self._found.append(counts.get(term, 0))
            self._found[number] += 1
            self._prompts[number].append(self._n)
            self._owners.append(self._n)
            self._terms.append(number)
        self._n += 1
        self._weighed = None

    def alike(self, text: str) -> np.ndarray:
        """How much of every prompt the text has."""
        weights, totals = self._weights()
        shared = np.zeros(self._n)
        for term in terms(text):
            if (number := self._ids.get(term)) is not None:
                shared[_view(self._prompts[number])] += weights[number]
        return np.minimum(shared / totals, 1.0)

    def _weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight of every term, and sum of the weights of every prompt's."""
        if self._weighed is None:
            found = _view(self._found)
            weights = np.log((2 + self._background + self._n) / (1 + found)) ** 3
            totals = np.bincount(_view(self._owners), weights[_view(self._terms)], self._n)
            self._weighed = weights, totals
        return self._weighed


class VectorIndex:
    """The cosine of the embeddings of a text and a prompt.

    Args:
        encoder: Embeds texts.
    """

    def __init__(self, encoder: SentenceEncoder) -> None:
        self._encoder = encoder
        self._vectors: list[np.ndarray] = []
        self._matrix: np.ndarray | None = None

    def add(self, prompt: str, counts: Mapping[str, int], vector: Tensor | None) -> None:
        """Adds a prompt by its embedding."""
        if vector is None:
            raise ValueError("a prompt among embeddings has none itself")
        self._vectors.append(vector.double().cpu().numpy())
        self._matrix = None

    def alike(self, text: str) -> np.ndarray:
        """The cosines."""
        if self._matrix is None:
            self._matrix = np.stack(self._vectors)
        (vector,) = self._encoder.embed([text]).double().numpy()
        return np.minimum(self._matrix @ vector, 1.0)


def _view(numbers: array[int]) -> np.ndarray:
    """The same memory as an array of int64, until more is added."""
    return np.frombuffer(numbers, dtype=np.int64)
