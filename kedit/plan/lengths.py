"""How long the texts of a run are: of its own records where data and tokenizer are there, otherwise CounterFact's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kedit.model.lm import LM
from kedit.model.tokenization import encode_subject
from kedit.request import EditRequest


@dataclass(frozen=True)
class Lengths:
    """Tokens, those of the longest text of a batch where texts are padded to it.

    Attributes:
        suffix: From a subject's last token to the last but one of the target.
        prefix: Before that token, without a context.
        target: Of a target.
        text: Of a prompt with its target.
        requests: How many requests there are.
        own: Whether they are those of the run's records.
    """

    suffix: int = 8
    prefix: int = 10
    target: int = 2
    text: int = 18
    requests: int = 1000
    own: bool = False


def lengths_of(lm: LM, requests: Sequence[EditRequest], most: int = 2000) -> Lengths:
    """Those of some requests; requests without a subject are left out."""
    found = []
    for request in requests[:most]:
        if request.subject:
            named, target = request.named(), request.target_new
            t = encode_subject(lm, request.prompt, named, target, "{}", request.name, trained=True)
            found.append((len(t.ids) - 1 - t.subject_last, t.subject_last, len(t.target), len(t.ids)))
    if not found:
        return Lengths()
    suffix, prefix, target, text = zip(*found, strict=True)
    return Lengths(max(suffix), max(prefix), round(sum(target) / len(target)), max(text), len(requests), own=True)
