"""Texts to put before a prompt: `Passages`, two halves of a corpus that share no line.

One half may train, the other tests. How the corpus is read is in `kedit.covariance.corpus`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from random import Random

from kedit.covariance import StatsConfig, corpus_lines
from kedit.errors import KeditError
from kedit.model.lm import LM
from kedit.model.tokenization import sayable
from kedit.runtime.progress import stages

CHARACTERS = 1 << 23  # read of a corpus: 1.4 million words, 4000 records' texts of 300 words


class Passages:
    """Lines of a corpus, the first half to train with and the second to test with.

    Args:
        lm: Whose tokens are counted.
        lines: The corpus. Braces are removed: they mean a slot in kedit's templates. A line of the second half
            that occurs in the first (headings do) is left out.
        option: The option that names the corpus, for messages.

    Attributes:
        train: Lines of the first half.
        test: Lines of the second half.

    Raises:
        KeditError: Fewer than two different lines.
    """

    def __init__(self, lm: LM, lines: Sequence[str], option: str = "data.queries.corpus") -> None:
        clean = [" ".join(sayable(lm, line).replace("{", "").replace("}", "").split()) for line in lines]
        clean = [line for line in clean if line]
        words = list(accumulate(line.count(" ") + 1 for line in clean))
        half = max(1, sum(2 * n < words[-1] for n in words))
        self.lm = lm
        self.train = clean[:half]
        known = set(self.train)
        self.test = [line for line in clean[half:] if line not in known]
        if not self.test:
            raise KeditError(f"{option}: long contexts need a text of at least two different lines")

    @classmethod
    def read(cls, lm: LM, corpus: str, option: str = "data.queries.corpus") -> Passages:
        """Passages of a corpus given as in `StatsConfig`; "self" is the text the statistics are taken over.

        Args:
            lm: The model.
            corpus: Which corpus.
            option: The option that says so, for messages.

        Raises:
            KeditError: The corpus cannot be read or is too short.
        """
        try:
            with stages() as report:
                lines = corpus_lines(lm, StatsConfig(corpus=corpus), CHARACTERS, progress=report)
        except KeditError as error:
            raise KeditError(str(error).replace("stats.corpus", option, 1)) from None
        return cls(lm, lines, option)

    def draw(
        self, lines: Sequence[str], count: int, random: Random, words: int, tokens: int | None = None
    ) -> list[str]:
        """Different texts, each from a random line onwards; after the last line comes the first.

        Args:
            lines: `train` or `test`.
            count: Most texts wanted; fewer where there are fewer lines.
            random: Draws.
            words: Words of a text, white space between them (fewer only where all lines together have fewer).
            tokens: Most tokens of a text.
        """
        starts = random.sample(range(len(lines)), min(count, len(lines)))
        texts = (self._from(lines, start, words) for start in starts)
        return list(dict.fromkeys(text if tokens is None else self.fit(text, tokens) for text in texts))

    def fit(self, text: str, tokens: int) -> str:
        """The beginning of `text`, in whole words, that has at most so many tokens (BOS not counted)."""
        spans = [(a, b) for a, b in self.lm.offsets(text)[1] if b > a]
        if len(spans) <= tokens:
            return text
        end = spans[tokens][0]
        while end > 0 and not (text[end].isspace() or text[end - 1].isspace()):
            end -= 1
        return text[:end].rstrip()

    def _from(self, lines: Sequence[str], start: int, words: int) -> str:
        found: list[str] = []
        for i in range(len(lines)):
            found += lines[(start + i) % len(lines)].split(" ")
            if len(found) >= words:
                break
        return " ".join(found[:words])
