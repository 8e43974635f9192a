"""The editing metrics as torchmetrics classes: what a training loop logs as it runs, on one rank or many.

The same definitions as `kedit.results.summary`, which makes the report with its intervals from the result rows. Every
update is one record; values are in percent, means over records of the mean over the record's probes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from kedit.evaluation.consistency import LOCAL
from kedit.evaluation.fluency import ngram_entropy
from kedit.evaluation.score import ProbeScore
from kedit.evaluation.tfidf import Tfidf
from kedit.results.intervals import harmonic_mean
from kedit.results.rows import METRICS, RATES, unchanged
from kedit.results.summary import SCORED

EXACT_DIGITS = 17


class _CaseMeans(Metric):
    """Means of named quantities, over records (`name`) and over probes (`name_micro`)."""

    full_state_update = False
    higher_is_better = True

    case_sums: Tensor  # [n_names], sums over records of the record's mean
    case_counts: Tensor
    probe_sums: Tensor  # [n_names], sums over probes
    probe_counts: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        for state in ("case_sums", "case_counts", "probe_sums", "probe_counts"):
            self.add_state(state, torch.zeros(len(self.names)), dist_reduce_fx="sum")

    def _take(self, values: Mapping[str, Sequence[float]]) -> None:
        """Add one record: name -> one value per probe that has it."""
        for i, name in enumerate(self.names):
            if found := values.get(name):
                self.case_sums[i] += sum(found) / len(found)
                self.case_counts[i] += 1
                self.probe_sums[i] += sum(found)
                self.probe_counts[i] += len(found)

    def compute(self) -> dict[str, Tensor]:
        """Percentages, `name` and `name_micro`; only of what was measured."""
        result: dict[str, Tensor] = {}
        for i, name in enumerate(self.names):
            if self.case_counts[i] > 0:
                result[name] = 100 * self.case_sums[i] / self.case_counts[i]
                result[f"{name}_micro"] = 100 * self.probe_sums[i] / self.probe_counts[i]
        return result


class ProbeRates(_CaseMeans):
    """Success, exact match, token accuracy, generated match, p(answer) and magnitude of one kind of probe."""

    def __init__(self) -> None:
        super().__init__(tuple(METRICS))

    def update(self, scores: Sequence[ProbeScore]) -> None:
        """Take the scores of one record's probes of the kind."""
        self._take(_values(scores))


class Locality(_CaseMeans):
    """How many probes an edit left alone: `unchanged` argmaxes, and the share of `unchanged_tokens`."""

    def __init__(self) -> None:
        super().__init__(("unchanged", "unchanged_tokens"))

    def update(self, before: Sequence[ProbeScore], after: Sequence[ProbeScore]) -> None:
        """Take one record's probes, scored before and after its edit in the same order."""
        pairs = [unchanged(a.as_row(), b.as_row()) for a, b in zip(before, after, strict=True)]
        self._take({name: [pair[name] for pair in pairs] for name in self.names})


class EditScore(Metric):
    """Harmonic mean of efficacy, generality and locality (ROME's score S), in percent.

    Args:
        rate: Which rate of each: `success` (the published score), `exact`, `token_accuracy` or `generated`.
    """

    full_state_update = False
    higher_is_better = True

    sums: Tensor  # [3], one per kind of SCORED
    counts: Tensor

    def __init__(self, rate: str = "success") -> None:
        super().__init__()
        if rate not in RATES:
            raise ValueError(f"rate {rate!r} is none of {', '.join(RATES)}")
        self.rate = rate
        self.add_state("sums", torch.zeros(len(SCORED)), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(SCORED)), dist_reduce_fx="sum")

    def update(self, scores: Mapping[str, Sequence[ProbeScore]]) -> None:
        """Take one record: kind -> scores of its probes."""
        for i, kind in enumerate(SCORED):
            if found := _values(scores.get(kind, ()))[self.rate]:
                self.sums[i] += sum(found) / len(found)
                self.counts[i] += 1

    def compute(self) -> Tensor:
        """The score; NaN until each of the three kinds was measured."""
        means = (self.sums / self.counts).tolist()
        return torch.tensor(100 * float(harmonic_mean(means)), device=self.sums.device)


class Fluency(Metric):
    """Mean n-gram entropy of texts, in bits: how varied they are (`kedit.evaluation.fluency.ngram_entropy`)."""

    full_state_update = False
    higher_is_better = True

    total: Tensor  # sum over texts
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("total", "count"):
            self.add_state(state, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, texts: Sequence[str]) -> None:
        """Take texts, each with its prompt."""
        self.total += sum(map(ngram_entropy, texts))
        self.count += len(texts)

    def compute(self) -> Tensor:
        """Bits; NaN before the first text."""
        return self.total / self.count


class Consistency(Metric):
    """Mean TF-IDF cosine of a record's texts and its reference texts, in percent (ROME's "consistency").

    It depends on what the word weights were learnt from, so name that beside it: see `card`.

    Args:
        tfidf: The word weights.
        name: What the number is called: `consistency_local` where weights and references are the data set's own
            (`kedit.evaluation.consistency`).

    Attributes:
        fitted: What TF-IDF was fitted on: fingerprint, number of texts and of words.
    """

    full_state_update = False
    higher_is_better = True

    total: Tensor  # sum over records
    count: Tensor

    def __init__(self, tfidf: Tfidf, name: str = LOCAL) -> None:
        super().__init__()
        self.tfidf, self.name = tfidf, name
        self.fitted = tfidf.card()
        for state in ("total", "count"):
            self.add_state(state, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, texts: Sequence[str], references: Sequence[str]) -> None:
        """Take one record; both sides are joined. Without texts or references it does not count."""
        if texts and references:
            self.total += self.tfidf.cosine(" ".join(texts), " ".join(references))
            self.count += 1

    def compute(self) -> Tensor:
        """Percent; NaN before the first record."""
        return 100 * self.total / self.count

    def card(self) -> dict[str, Any]:
        """Name, unit and what TF-IDF was fitted on, JSON-able."""
        return {"name": self.name, "unit": "percent", "fitted_on": dict(self.fitted)}


def _values(scores: Sequence[ProbeScore]) -> dict[str, list[float]]:
    """Quantity -> its values over the probes that have it."""
    rows = [score.as_row(EXACT_DIGITS) for score in scores]
    return {
        name: [float(value) for value in map(value_of, rows) if value is not None] for name, value_of in METRICS.items()
    }
