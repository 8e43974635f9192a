"""PAC's locality term: other prompts, and what the unedited model says after them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from kedit.errors import KeditError
from kedit.forward.logits import frozen
from kedit.forward.packing import logits_of
from kedit.methods.pac.config import LocalityConfig
from kedit.model.lm import LM
from kedit.model.tokenization import asked
from kedit.request import EditRecord

_BATCH = 32


@dataclass(frozen=True)
class Reference:
    """What the unedited model says at `n` places of some prompts: its `k` likeliest tokens, and the rest as one.

    Attributes:
        tokens: `[n, k]` int64.
        logp: Their log-probabilities, `[n, k]` float32.
        rest: Log-probability of all other tokens together, `[n]` float32.
    """

    tokens: Tensor
    logp: Tensor
    rest: Tensor

    def kl(self, logits: Tensor) -> Tensor:
        """Mean KL from the reference to `logits` `[n, vocab]`, over the tokens and the rest; a scalar."""
        new = torch.log_softmax(logits.float(), -1).gather(1, self.tokens)
        rest = _rest(new)
        kl = (self.logp.exp() * (self.logp - new)).sum(1) + self.rest.exp() * (self.rest - rest)
        return kl.mean()

    def take(self, index: Tensor) -> Reference:
        """Those of some places."""
        return Reference(self.tokens[index], self.logp[index], self.rest[index])


class LocalityTerm:
    """Prompts whose continuation an edit should leave as it is.

    Args:
        lm: The model, not edited yet.
        config: Which prompts, and how many.
        records: All records of the run.
        facts: Records whose prompts are kept; those that name a subject or a target of the run are passed over.
        seed: Of the draws.

    Raises:
        KeditError: No fact is left.
    """

    def __init__(
        self, lm: LM, config: LocalityConfig, records: Sequence[EditRecord], facts: Sequence[EditRecord], seed: int
    ) -> None:
        self.lm, self.config = lm, config
        generator = torch.Generator().manual_seed(seed)
        subjects = sorted({r.request.subject for r in [*records, *facts] if r.request.subject is not None})
        self._texts = _prompts(facts, records)
        if not self._texts:
            raise KeditError("model.locality: every fact that could be kept names a subject or a target of the run")
        order = torch.randperm(len(self._texts), generator=generator)[: config.facts].tolist()
        self._texts = [self._texts[i] for i in order]
        self._general = torch.arange(len(self._texts))
        self._own: dict[str, Tensor] = {}
        for record in records:
            r = record.request
            if r.subject is None or not config.others:
                continue
            picked = torch.randperm(len(subjects), generator=generator)[: config.others + 1].tolist()
            others = [subjects[i] for i in picked if subjects[i] != r.subject][: config.others]
            start = len(self._texts)
            self._texts += [r.about(other).rstrip(" ") for other in others]
            self._own[r.case_id] = torch.arange(start, len(self._texts))
        self._ids = [tuple(asked(lm, text)) for text in self._texts]
        self._starts = [0, *accumulate(min(len(ids), config.positions) for ids in self._ids)]
        self._reference = self._ask()

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """Token ids of all that can be drawn."""
        return self._ids

    def draw(self, cases: Sequence[str], generator: torch.Generator) -> tuple[list[tuple[int, ...]], Reference]:
        """Prompts for a step: half of them the records' own with other subjects, where there are such.

        Args:
            cases: The records of the step.
            generator: A CPU generator.

        Returns:
            Token ids of each prompt, and what should follow them.
        """
        own = torch.cat([self._own[case] for case in cases if case in self._own] or [self._general[:0]])
        n = self.config.prompts
        first = own[torch.randperm(len(own), generator=generator)[: n // 2]]
        more = torch.randperm(len(self._general), generator=generator)[: n - len(first)]
        index = torch.cat([first, self._general[more]]).tolist()
        where = torch.cat([torch.arange(self._starts[i], self._starts[i + 1]) for i in index])
        return [self._ids[i] for i in index], self._reference.take(where.to(self.lm.device))

    def _ask(self) -> Reference:
        parts = []
        with frozen(self.lm.model):
            for start in range(0, len(self._ids), _BATCH):
                texts = self._ids[start : start + _BATCH]
                places = last_places(texts, self.config.positions, self.lm.device)
                logits = logits_of(self.lm, texts, *places).float()
                logp, tokens = torch.log_softmax(logits, -1).topk(min(self.config.top, logits.shape[-1] - 1), -1)
                parts.append((tokens, logp, _rest(logp)))
        return Reference(*(torch.cat(column) for column in zip(*parts, strict=True)))


def last_places(texts: Sequence[tuple[int, ...]], n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of the last `n` tokens of every text (all of a shorter one)."""
    places = [(row, col) for row, text in enumerate(texts) for col in range(max(0, len(text) - n), len(text))]
    rows, cols = torch.tensor(places, device=device).T
    return rows, cols


def _rest(logp: Tensor) -> Tensor:
    """Log of what the probabilities `[n, k]` leave of 1."""
    return torch.log1p(-logp.exp().sum(1).clamp(max=1 - 1e-6))


def _prompts(facts: Sequence[EditRecord], records: Sequence[EditRecord]) -> list[str]:
    """Prompts of facts, without those that name what the run edits, as words of their own."""
    names = {text.casefold() for r in records for text in (r.request.subject, r.request.target_new) if text}
    named = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in sorted(names)))
    found: dict[str, None] = {}
    for record in facts:
        for text in [record.request.text, *(p.text for p in record.probes if p.kind == "neighborhood")]:
            if not (names and named.search(text.casefold())):
                found[text.rstrip(" ")] = None
    return list(found)
