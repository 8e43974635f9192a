"""`trace`: what restoring a state, an MLP or an attention does for the probability of each fact's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.causal_tracing.facts import Fact, noise_level
from kedit.causal_tracing.restoration import Restorations, Span, spans_of
from kedit.causal_tracing.runs import PARTS, Part, Runs
from kedit.causal_tracing.stored import StoredTraces
from kedit.errors import KeditError, above_zero, at_least
from kedit.runtime.option_values import check_values
from kedit.runtime.room import RESTORING, in_parts

if TYPE_CHECKING:
    from kedit.model.lm import LM

__all__ = ["PARTS", "FactTrace", "Part", "TraceConfig", "trace", "window_of"]


@dataclass
class TraceConfig:
    """How facts are traced.

    Args:
        noise: Standard deviation of the noise, as a multiple of that of the embeddings of the subjects' tokens.
        samples: Corrupted runs of every fact, over which its probabilities are averaged.
        window: Layers whose MLPs or attentions are restored together; null: 10 of 48, as in the paper, so 6 of 30.
        seed: Of the noise.
        batch_tokens: Tokens that a layer runs at once, at least those of one corrupted run; null: by device.
    """

    noise: float = 3.0
    samples: int = 10
    window: int | None = None
    seed: int = 0
    batch_tokens: int | None = None

    def __post_init__(self) -> None:
        above_zero("trace.noise", self.noise)
        at_least("trace.samples", self.samples, 1)
        at_least("trace.window", self.window, 1)
        at_least("trace.batch_tokens", self.batch_tokens, 1)
        check_values({"seed": self.seed}, "trace")


@dataclass(frozen=True)
class FactTrace:
    """What was measured of one fact.

    Attributes:
        fact: The fact.
        clean: Probability of its answer in the clean run.
        corrupted: In the corrupted runs, their mean.
        restored: Part -> with it restored, means over the corrupted runs: `[tokens, n_layers]` float64, on the CPU.
        tokens: Which tokens of the prompt these are; the tokens before the subject's first have no effect.
    """

    fact: Fact
    clean: float
    corrupted: float
    restored: dict[Part, Tensor]
    tokens: range

    def effect(self, part: Part) -> Tensor:
        """The indirect effect, p restored - p corrupted, `[tokens, n_layers]`."""
        return self.restored[part] - self.corrupted


def window_of(config: TraceConfig, n_layers: int) -> int:
    """Layers of a window: the paper's share of the depth, 10 of 48, and at least one."""
    return max(1, round(n_layers * 10 / 48)) if config.window is None else min(config.window, n_layers)


def trace(
    lm: LM,
    facts: Sequence[Fact],
    config: TraceConfig | None = None,
    parts: Sequence[Part] = PARTS,
    subject_last: bool = False,
    progress: Callable[[int, int], None] | None = None,
    sigma: float | None = None,
    keep: bool = False,
) -> list[FactTrace]:
    """Trace facts (Meng et al. 2022, section 2.1), each by itself; averages are in `kedit.analysis.causal_tracing`.

    Args:
        lm: The model, unedited.
        facts: What it knows.
        config: Noise and window; None: the paper's.
        parts: What is restored.
        subject_last: Restore at the subject's last token alone, not at every token from the subject's first on.
        progress: Called after every fact with (facts done, facts in all).
        sigma: Standard deviation of the noise; None: from these facts' subjects, as `config` says.
        keep: Take traces from kedit's cache, and leave them there.

    Raises:
        KeditError: No facts, or a model whose embeddings cannot be reached.
    """
    config = config or TraceConfig()
    if not facts:
        raise KeditError("there is no fact to trace")
    sigma = noise_level(lm, facts, config.noise) if sigma is None else sigma
    budget = config.batch_tokens or (2048 if lm.device.type == "cpu" else 65_536)
    window = window_of(config, lm.arch.n_layers)
    spans: dict[Part, list[Span]] = {part: spans_of(part, lm.arch.n_layers, window) for part in parts}
    how = {"sigma": sigma, "samples": config.samples, "window": window, "seed": config.seed}
    stored = StoredTraces(lm, how, parts) if keep else None
    found = []
    for done, fact in enumerate(facts, 1):
        tokens = range(fact.last, fact.last + 1) if subject_last else range(fact.first, len(fact.ids))
        own = None if stored is None else stored.read(fact, tokens)
        if own is None:
            own = _traced(Runs(lm, fact, sigma, config.samples, config.seed), tokens, spans, budget)
            if stored is not None:
                stored.write(own)
        found.append(own)
        if progress is not None:
            progress(done, len(facts))
    return found


def _traced(runs: Runs, tokens: range, spans: Mapping[Part, Sequence[Span]], budget: int) -> FactTrace:
    """One fact."""
    rows: dict[Part, list[Tensor]] = {part: [] for part in spans}
    for token in tokens:
        own = Restorations(runs, token - runs.fact.first)
        of_a_sample = runs.lm.arch.n_layers * (len(runs.fact.ids) - token)
        for part, each in spans.items():
            rows[part].append(_restored(own, part, each, of_a_sample, budget))
    restored: dict[Part, Tensor] = {part: torch.stack(own) for part, own in rows.items()}
    return FactTrace(runs.fact, runs.p_clean, float(runs.p_corrupted.double().mean()), restored, tokens)


def _restored(own: Restorations, part: Part, spans: Sequence[Span], of_a_sample: int, budget: int) -> Tensor:
    """Means over the corrupted runs, `[n_layers]` float64; some runs at a time."""
    size, samples, found = max(1, budget // of_a_sample), range(own.runs.n), []
    for start in range(0, len(samples), size):
        each = in_parts(
            own.runs.lm.room,
            RESTORING,
            samples[start : start + size],
            lambda some: own.probabilities(part, spans, some).double().cpu(),
            lambda some: len(some) * of_a_sample,
        )
        found.extend(each)
    return torch.cat(found).mean(0)
