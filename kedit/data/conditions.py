"""Probes that count only where the unedited model knows something: which of them are asked.

RippleEdits tests what follows from an edit, and says for each test what a model must know to get there. A test whose
conditions the unedited model does not meet says nothing of the edit, and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kedit.forward.greedy import greedy, prompt_ids
from kedit.model.tokenization import TooLong
from kedit.request import Condition, EditRecord, Probe
from kedit.text.matching import contains

if TYPE_CHECKING:
    from kedit.model.lm import LM

TOKENS = 30  # of a continuation in which the answers are looked for


@dataclass(frozen=True, slots=True)
class Conditions:
    """How many probes had conditions, and how many of them are asked."""

    probes: int
    asked: int

    def notice(self) -> str:
        """Both in a line."""
        return f"{self.asked} of {self.probes} probes with conditions are asked: the unedited model meets those"


def with_met_conditions(lm: LM, records: Sequence[EditRecord]) -> tuple[list[EditRecord], Conditions]:
    """The records without the probes whose conditions the model does not meet, and the counts.

    Args:
        lm: The unedited model.
        records: The records; every condition of theirs is asked once, by greedy continuation of at most 30 tokens.
    """
    asked = dict.fromkeys(
        condition.text for record in records for probe in record.probes for condition in probe.conditions
    )
    said = _continuations(lm, list(asked))

    def is_met(condition: Condition) -> bool:
        text = said[condition.text]
        return text is not None and all(contains(text, spellings) for spellings in condition.answers)

    met: dict[Condition, bool] = {}
    had = kept = 0

    def counts(probe: Probe) -> bool:
        for condition in probe.conditions:
            if condition not in met:
                met[condition] = is_met(condition)
        return all(met[condition] for condition in probe.conditions)

    made = []
    for record in records:
        probes = tuple(probe for probe in record.probes if counts(probe))
        had += sum(bool(probe.conditions) for probe in record.probes)
        kept += sum(bool(probe.conditions) for probe in probes)
        made.append(replace(record, probes=probes))
    return made, Conditions(had, kept)


def _continuations(lm: LM, prompts: list[str]) -> dict[str, str | None]:
    """What the model says to each prompt; None where it does not fit into its context."""
    fit = []
    for prompt in prompts:
        try:
            prompt_ids(lm, prompt, TOKENS)
        except TooLong:
            continue
        fit.append(prompt)
    texts = greedy(lm, fit, TOKENS, shared=True) if fit else []
    return dict.fromkeys(prompts) | dict(zip(fit, texts, strict=True))
