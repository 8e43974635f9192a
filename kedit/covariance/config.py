"""The options of the key statistics, as YAML writes them under `stats:`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kedit.covariance.matrix import RIDGE
from kedit.errors import KeditError
from kedit.runtime.option_values import check_values


@dataclass
class StatsConfig:
    """Over which text the second moment of the keys is taken, and how exactly.

    Args:
        corpus: "self" is text that the unedited model writes itself: needs no data and no network. Or a local
            text file (.jsonl: one document per line in "text"), or hf:NAME[:CONFIG][:SPLIT][:COLUMN] read by
            the datasets library (missing parts: no config, train, text).
        tokens: Tokens to average over. 30 000 is a minute's work for a small model on a CPU and 20 times
            its d_in; published work takes 100 000 Wikipedia articles. At least 4 times d_in.
        sequence_length: Documents are packed, with EOS between, and cut to this many tokens (at most the
            model's context).
        batch_tokens: Tokens in one forward pass; bounds the memory, hardly changes the speed. null chooses by device
            (4096 on CPU, 16384 on GPU).
        seed: Of the sampled text (self), or of the order of the documents (hf).
        ridge: Added to C as ridge * mean(diagonal) * I before it is inverted; 0 for none. Not part of the
            cached file: it can be changed at no cost.
        dtype: Type of keys, products and sums. float64 is for checks.
    """

    corpus: str = "self"
    tokens: int = 30_000
    sequence_length: int = 256
    batch_tokens: int | None = None
    seed: int = 0
    ridge: float = RIDGE
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        check_values(vars(self), "stats")
        for name in ("tokens", "sequence_length", "batch_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise KeditError(f"stats.{name} is {value}; it must be 1 or more")
        if self.ridge < 0:
            raise KeditError(f"stats.ridge is {self.ridge}; it must be 0 or more")
        if not self.corpus:
            raise KeditError("stats.corpus is empty; give self, a text file, or hf:NAME")
