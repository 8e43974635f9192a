"""What the methods of a memory have in common: sentences of facts, the words of a background, embeddings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kedit.delta.delta import Delta
from kedit.delta.prompt_memory import WHOLE, PromptMemory, PromptRule, StoredFact
from kedit.evaluation.consistency import collection
from kedit.model.lm import LM
from kedit.model.sentence_encoder import SentenceEncoder
from kedit.model.tokenization import encode, surely_fits
from kedit.request import EditRecord, EditRequest
from kedit.text.terms import terms

_ENDS = ".!?…。！？"


@dataclass(frozen=True)
class Background:
    """How common words are.

    Attributes:
        texts: Number of texts.
        counts: Of every term, in how many of them it is.
    """

    texts: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Sequence[EditRecord]) -> Background:
        """From all that records say: prompts of requests and probes with their answers."""
        texts = collection(records)
        return cls(len(texts), Counter(term for text in texts for term in terms(text)))

    def about(self, prompt: str) -> dict[str, int]:
        """The counts of a prompt's terms that any text has."""
        return {term: self.counts[term] for term in terms(prompt) if term in self.counts}


def sentence(request: EditRequest) -> str:
    """The prompt with the new target, and a full stop where it has none."""
    said = request.stating(request.target_new)
    return said if said.endswith(tuple(_ENDS)) else f"{said}."


def memory(
    rule: PromptRule,
    facts: Sequence[StoredFact],
    demonstrations: Sequence[str] = (),
    encoder: SentenceEncoder | None = None,
) -> Delta:
    """Facts as a delta."""
    vectors = None if encoder is None else encoder.embed([fact.prompt for fact in facts])
    return Delta({WHOLE: PromptMemory(rule, tuple(facts), tuple(demonstrations), vectors, encoder)})


def check_room(lm: LM, rule: PromptRule, request: EditRequest, said: str) -> None:
    """Whether a fact, its own prompt and its answer fit into the model's context together.

    Raises:
        TooLong: They do not; names the record.
    """
    before = f"{rule.said(said)}{rule.lead}"
    if not surely_fits(lm, before, request.text, request.target_new):
        name = f"{request.name}, with its fact before it"
        encode(lm, f"{before}{request.text}", request.target_new, name, request.joint)
