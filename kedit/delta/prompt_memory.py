"""`PromptMemory`: edited facts, and what of them stands before a prompt that the edited model is asked.

No weight changes. Its module is the model itself, path `""`. Where prompts become tokens, `kedit.delta.prompts` asks
what stands before them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kedit.delta.change import Change, LaneStack
from kedit.delta.place import Place
from kedit.delta.shelf import Shelf, install
from kedit.errors import KeditError
from kedit.model.sentence_encoder import SentenceEncoder

WHOLE = ""
"""The path of the model itself."""


@dataclass(frozen=True)
class PromptRule:
    """How facts stand before a prompt, and before which.

    Attributes:
        template: A fact with its line break, with one `{}` for its sentence: `"New fact: {}\\n"`.
        lead: What stands right before the prompt, behind the facts.
        most: The most facts that stand before a prompt.
        threshold: How like a prompt a fact must be, at least; None: every prompt is given all facts.
        background: Number of the texts that words are weighed by, beside the facts themselves.
        encoder: Folder of the sentence encoder; None: facts are found by their words.
        encoder_fingerprint: Of its weights.
    """

    template: str
    lead: str = ""
    most: int = 1
    threshold: float | None = None
    background: int = 0
    encoder: str | None = None
    encoder_fingerprint: str | None = None

    def __post_init__(self) -> None:
        wanted = {"template": str, "lead": str, "most": int, "threshold": float | None, "background": int}
        wanted |= {"encoder": str | None, "encoder_fingerprint": str | None}
        for name, kind in wanted.items():
            if not isinstance(getattr(self, name), kind) or isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} of a prompt memory is {getattr(self, name)!r}")
        if self.template.count("{}") != 1 or self.most < 1 or self.background < 0 or self.threshold != self.threshold:
            raise ValueError(f"no rule of a prompt memory: {self}")

    def said(self, sentence: str) -> str:
        """A fact as it stands before a prompt."""
        before, after = self.template.split("{}")
        return f"{before}{sentence}{after}"


@dataclass(frozen=True)
class StoredFact:
    """An edited fact.

    Attributes:
        prompt: What it is found by.
        sentence: What it says, e.g. `"The capital of France is Rome."`.
        counts: Of the prompt's terms, in how many background texts they are; none: in no text.
    """

    prompt: str
    sentence: str
    counts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts = isinstance(self.prompt, str) and isinstance(self.sentence, str) and isinstance(self.counts, dict)
        if not texts or not all(type(n) is int and n > 0 and isinstance(t, str) for t, n in self.counts.items()):
            raise ValueError("a fact of a prompt memory is no two texts with counts of words")


@dataclass(frozen=True, eq=False)
class PromptMemory(Change):
    """Facts beside the model. Of two of the same prompt the later one is kept.

    Attributes:
        rule: How and where they are used.
        facts: In the order of their edits.
        demonstrations: Texts that stand before all facts, the one that is left out first at the beginning.
        vectors: Embeddings of the facts' prompts `[n, d]`, float32, where there is an encoder.
        encoder: What made them; None: the rule's folder is read when it is needed.

    Raises:
        ValueError: The parts do not fit together.
    """

    rule: PromptRule
    facts: tuple[StoredFact, ...]
    demonstrations: tuple[str, ...] = ()
    vectors: Tensor | None = None
    encoder: SentenceEncoder | None = None

    kind: ClassVar[str] = "prompts"

    def __post_init__(self) -> None:
        if (self.rule.encoder is None) != (self.vectors is None):
            raise ValueError("a prompt memory has embeddings where it names an encoder, and only there")
        if self.vectors is not None and (self.vectors.ndim != 2 or len(self.vectors) != len(self.facts)):
            raise ValueError(f"embeddings {tuple(self.vectors.shape)} of {len(self.facts)} facts")
        if not self.facts or not all(isinstance(text, str) for text in self.demonstrations):
            raise ValueError("a prompt memory holds no fact, or a demonstration that is no text")

    def to(self, device: torch.device | str) -> PromptMemory:
        """The same: texts have no device, and embeddings are used on the CPU."""
        return self

    def check(self, path: str, module: nn.Module) -> None:
        """It belongs to the whole model, any model."""
        if path != WHOLE:
            raise KeditError(f"this delta puts texts before the prompts of {path!r}, which is no whole model")

    def write(self, place: Place) -> None:
        """Makes the facts known on the model, after those that were written before."""
        shelf = place.installed(Shelf)
        if shelf is None:
            shelf = Shelf()
            shelf.add(self)  # first: it may be refused
            place.install(shelf, lambda: [install(place.module, shelf)])
        else:
            shelf.add(self)

    def numbers(self) -> Iterable[Tensor]:
        """The embeddings, if any."""
        return [] if self.vectors is None else [self.vectors]

    @classmethod
    def add(cls, parts: Sequence[PromptMemory]) -> PromptMemory:
        """All facts; of those of one prompt the last.

        Raises:
            ValueError: Their rules differ.
        """
        first = parts[0]
        if any(part.rule != first.rule for part in parts):
            raise ValueError("prompt memories of different settings")
        flat = [(part, i) for part in parts for i in range(len(part.facts))]
        last = {part.facts[i].prompt: number for number, (part, i) in enumerate(flat)}
        kept = [flat[number] for number in sorted(last.values())]
        vectors = [part.vectors[i] for part, i in kept if part.vectors is not None]
        return PromptMemory(
            first.rule,
            tuple(part.facts[i] for part, i in kept),
            tuple(dict.fromkeys(text for part in parts for text in part.demonstrations)),
            torch.stack(vectors) if vectors else None,
            first.encoder,
        )

    def tensors(self) -> dict[str, Tensor]:
        """`prompts.texts`: rule, facts and demonstrations as the bytes of JSON in UTF-8; `prompts.vectors`."""
        facts = [[fact.prompt, fact.sentence, dict(fact.counts)] for fact in self.facts]
        whole = {"rule": asdict(self.rule), "facts": facts, "demonstrations": self.demonstrations}
        data = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()
        texts = torch.frombuffer(bytearray(data), dtype=torch.uint8).clone()
        return {"prompts.texts": texts} | ({} if self.vectors is None else {"prompts.vectors": self.vectors})

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> PromptMemory | None:
        """From those two."""
        if "prompts.texts" not in tensors:
            return None
        texts = tensors["prompts.texts"]
        if texts.dtype != torch.uint8 or texts.ndim != 1:
            raise ValueError(f"prompts.texts is {texts.dtype} {tuple(texts.shape)}, not uint8 [n]")
        whole = json.loads(texts.cpu().numpy().tobytes().decode())
        facts = tuple(StoredFact(*fact) for fact in whole["facts"])
        vectors = tensors.get("prompts.vectors")
        return PromptMemory(PromptRule(**whole["rule"]), facts, tuple(whole["demonstrations"]), vectors)

    def extent(self) -> str:
        """Number of facts and demonstrations."""
        shown = f", {len(self.demonstrations)} demonstrations" if self.demonstrations else ""
        return f"{len(self.facts)} fact{'s' * (len(self.facts) > 1)}{shown}"

    @classmethod
    def stack(cls, parts: Mapping[int, PromptMemory], n_lanes: int) -> Sequence[LaneStack]:
        """One stack, which does nothing in a forward pass: prompts are asked for before they are tokens."""
        shelves: dict[int, Shelf] = {}
        for lane, part in parts.items():
            shelves[lane] = Shelf()
            shelves[lane].add(part)
        return [_Shelves(shelves)]


class _Shelves(LaneStack):
    """What each lane remembers."""

    def __init__(self, shelves: Mapping[int, Shelf]) -> None:
        self.shelves: Mapping[int, Any] = shelves
