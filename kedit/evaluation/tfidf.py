"""TF-IDF: how alike two texts are in the words that are rare in a collection of texts. Fitted on what is at hand.

As scikit-learn's `TfidfVectorizer` (raw counts, smooth idf, unit length), but for two things: words are those of
`kedit.evaluation.fluency`, without punctuation; and a word that no fitted text has counts too, as the rarest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kedit.evaluation.fluency import words_of


@dataclass(frozen=True)
class Tfidf:
    """Word weights learnt from texts; made by `fit`.

    Attributes:
        idf: ln((1 + n) / (1 + df)) + 1 of every word, df being the number of the n texts that have it.
        n_texts: n.
        fingerprint: 16 hex digits that stand for the texts, in any order.
    """

    idf: Mapping[str, float]
    n_texts: int
    fingerprint: str

    @classmethod
    def fit(cls, texts: Iterable[str]) -> Tfidf:
        """Learn the weights.

        Args:
            texts: The collection.

        Raises:
            ValueError: There is no text.
        """
        collection = sorted(texts)
        if not collection:
            raise ValueError("TF-IDF needs at least one text to be fitted on")
        n = len(collection)
        df = Counter(word for text in collection for word in set(terms(text)))
        written = json.dumps(collection, ensure_ascii=False, separators=(",", ":"))
        name = hashlib.sha256(written.encode()).hexdigest()[:16]
        return cls({word: math.log((1 + n) / (1 + count)) + 1 for word, count in df.items()}, n, name)

    def vector(self, text: str) -> dict[str, float]:
        """Word -> weight, of unit length; empty for a text without words."""
        unseen = math.log(1 + self.n_texts) + 1
        weights = {word: count * self.idf.get(word, unseen) for word, count in Counter(terms(text)).items()}
        norm = math.sqrt(sum(weight * weight for weight in weights.values()))
        return {word: weight / norm for word, weight in weights.items()}

    def cosine(self, a: str, b: str) -> float:
        """Cosine of the two texts' vectors, from 0 (no word in common) to 1; 0 where a text has no words."""
        one, other = self.vector(a), self.vector(b)
        return sum(weight * other.get(word, 0.0) for word, weight in one.items())

    def card(self) -> dict[str, str | int]:
        """What it was fitted on: `fingerprint`, number of `texts` and of different `words`."""
        return {"fingerprint": self.fingerprint, "texts": self.n_texts, "words": len(self.idf)}


def terms(text: str) -> list[str]:
    """The words of a text, case folded, without punctuation marks."""
    return [word.casefold() for word in words_of(text) if word[0].isalnum() or word[0] == "_"]
