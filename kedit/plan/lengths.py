"""How long the texts of a run are: of its own records where data and tokenizer are there, otherwise CounterFact's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kedit.model.lm import LM
from kedit.model.tokenization import encode_subject
from kedit.request import EditRecord


@dataclass(frozen=True)
class Lengths:
    """Tokens, those of the longest text of a batch where texts are padded to it.

    Attributes:
        suffix: From a subject's last token to the last but one of the target.
        prefix: Before that token, without a context.
        target: Of a target.
        text: Of a prompt with its target.
        requests: How many requests there are.
        probes: Texts that are measured: those of all requests, and their probes.
        own: Whether they are those of the run's records.
        each: Of every request, the largest suffix first: suffix, prefix, target; empty where `own` is false.
    """

    suffix: int = 8
    prefix: int = 10
    target: int = 2
    text: int = 18
    requests: int = 1000
    probes: int = 10_000
    own: bool = False
    each: tuple[tuple[int, int, int], ...] = ()

    def largest(self, n: int) -> list[tuple[int, int, int]]:
        """Suffix, prefix and target of the `n` requests with the largest suffixes (kedit optimises like by like)."""
        return list(self.each[:n]) if self.each else [(self.suffix, self.prefix, self.target)] * n


def lengths_of(lm: LM, records: Sequence[EditRecord], most: int = 2000) -> Lengths:
    """Those of some records; records without a subject are left out."""
    found = []
    for request in [record.request for record in records[:most]]:
        if request.subject:
            named, target = request.named(), request.target_new
            t = encode_subject(lm, request.prompt, named, target, "{}", request.name, trained=True)
            found.append((len(t.ids) - 1 - t.subject_last, t.subject_last, len(t.target), len(t.ids)))
    if not found:
        return Lengths()
    suffix, prefix, target, text = zip(*found, strict=True)
    each = tuple(sorted((one[:3] for one in found), reverse=True))
    mean = round(sum(target) / len(target))
    probes = sum(1 + len(record.probes) for record in records)
    return Lengths(max(suffix), max(prefix), mean, max(text), len(records), probes, own=True, each=each)
