"""The options of REP's adapter, as YAML writes them under `adapter:`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kedit.errors import KeditError, at_least
from kedit.runtime.option_values import check_values


@dataclass
class AdapterConfig:
    """How REP's adapter is built and trained.

    Args:
        rank: Rank of the projection.
        anchored: The projection has a part (a + b r(k)) k* too, a and b trained from zero; it carries over to
            variants that were not trained on. The paper's has none.
        gate: logistic is a logistic regression on unit keys, fitted at once and convex; mlp is the paper's
            (D -> gate_width * D -> 1), trained beside the projection; none is always open.
        gate_width: Hidden width of the mlp gate, as a share of D.
        projection: false leaves the projection out, so that an open gate doubles the key (an ablation).
        dropout: On the projection's input while training.
        steps: Optimiser steps.
        lr: Adam's learning rate.
        positives: Keys of the subject and its variants in a step (the bare prompt's key comes on top).
        negatives: Keys in a step at which the gate should stay shut.
        aggregation: Weight of -cos(k_hat, C^-1 k*), the paper's aggregation loss.
        normalise: false takes the aggregation loss without normalising k_hat (an ablation).
        strength: Weight of (r(k_hat) - 1)^2, where r is the share of the edit that reaches a key.
        edit_strength: The share that a variant gets in the end; 1 is what the edited prompt itself gets. null chooses
            it for every edit, by asking its training variants.
        edit_strengths: What is chosen from, ascending.
        strength_variants: Variants that are asked.
        alpha: Weight of the consistency loss ||k_hat_o - k_o||^2 / ||k_o||^2 at the bare prompt's key. With
            `absolute` it is the paper's: the mean square over D, which depends on the model's width and scale.
        absolute: Losses on the keys as they are, without the scale that makes them alike in every model.
        gate_loss: Weight of the mlp gate's cross entropy, positives against negatives.
        anneal: The mlp gate's logit is multiplied by up to this during training, so that the soft gate ends hard.
        threshold: tau, the opening above which the gate acts; null calibrates it for every edit.
        threshold_range: A calibrated tau stays in here.
        false_alarms: A calibrated tau lets at most this share of the held-back negatives pass, within the range.
        hysteresis: How many nats below its threshold a gate opens again at most, at later tokens of a text in which it
            has opened: those of "X, a prominent figure in French cinema" after X. An opening lends half of itself (how
            far above the threshold it was), so false alarms lend little. null chooses it for every edit: the gate stays
            shut at what follows the name in the edit's own prompts. 0, the paper's: none.
        held_back: Share of the variants and negatives that only calibrate.
        contexts: Contexts for each variant besides the bare prompt; -1: all.
        long_contexts: Long texts before the prompt to train on, out of those the record has.
        others: Other subjects in the record's own prompt, all of whose tokens are negatives.
        phrases: Phrases after the subject's name that train like its variants (rep/phrases.py).
        phrase_others: Other subjects before each of these phrases, all of whose tokens are near negatives.
        confusable_names: Names that begin like the subject and end like another, all of whose tokens are near
            negatives.
        other_edits: Keys of the prompts of the run's other requests (where edits act together, of those edited so
            far), near negatives; at most so many, drawn.
        corpus_tokens: Tokens of the statistics' text that are negatives, shared by all edits.
    """

    rank: int = 32
    anchored: bool = True
    gate: Literal["logistic", "mlp", "none"] = "logistic"
    gate_width: float = 0.1
    projection: bool = True
    dropout: float = 0.0
    steps: int = 60
    lr: float = 2e-3
    positives: int = 48
    negatives: int = 128
    aggregation: float = 0.1
    normalise: bool = True
    strength: float = 1.0
    edit_strength: float | None = None
    edit_strengths: list[float] = field(default_factory=lambda: [1.0, 1.25, 1.5, 2.0])
    strength_variants: int = 8
    alpha: float = 1.0
    absolute: bool = False
    gate_loss: float = 1.0
    anneal: float = 4.0
    threshold: float | None = None
    threshold_range: list[float] = field(default_factory=lambda: [0.3, 0.5])
    false_alarms: float = 0.0005
    hysteresis: float | None = None
    held_back: float = 0.25
    contexts: int = 3
    long_contexts: int = 1
    others: int = 16
    phrases: int = 8
    phrase_others: int = 2
    confusable_names: int = 16
    other_edits: int = 1024
    corpus_tokens: int = 2048

    def __post_init__(self) -> None:
        check_values(vars(self), "model.adapter")
        for name, low, high in (
            ("gate_width", 0.0, 1.0),
            ("dropout", 0.0, 0.99),
            ("threshold", 0.0, 1.0),
            ("false_alarms", 0.0, 1.0),
            ("held_back", 0.0, 0.9),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise KeditError(f"model.adapter.{name}: {value} is not between {low:g} and {high:g}")
        if not self.edit_strengths or self.edit_strengths != sorted(self.edit_strengths):
            raise KeditError(f"model.adapter.edit_strengths: expects ascending numbers, not {self.edit_strengths}")
        low, high = (self.threshold_range * 2)[:2]
        if len(self.threshold_range) != 2 or not 0 < low <= high < 1:
            raise KeditError(f"model.adapter.threshold_range: expects 0 < low <= high < 1, not {self.threshold_range}")
        least = {"rank": 1, "steps": 0, "positives": 1, "negatives": 0, "hysteresis": 0, "contexts": -1}
        least |= dict.fromkeys(("lr", "gate_loss", "anneal", "aggregation", "edit_strength", "strength_variants"), 0)
        least |= dict.fromkeys(
            ("long_contexts", "others", "phrases", "phrase_others", "confusable_names", "other_edits"), 0
        )
        least |= {"corpus_tokens": 0}
        for name, bound in least.items():
            if getattr(self, name) is not None:
                at_least(f"model.adapter.{name}", getattr(self, name), bound)


def parity_config() -> AdapterConfig:
    """The recipe of the paper's released code (specs of REP, 4.2 and 4.3)."""
    return AdapterConfig(
        anchored=False,
        gate="mlp",
        dropout=0.1,
        steps=10,
        lr=5e-4,
        positives=15,
        negatives=0,
        aggregation=1.0,
        strength=0.0,
        alpha=50_000.0,
        absolute=True,
        gate_loss=0.0,
        anneal=1.0,
        edit_strength=1.0,
        threshold=0.9,
        hysteresis=0.0,
        held_back=0.0,
        contexts=-1,
        long_contexts=0,
        others=0,
        phrases=0,
        phrase_others=0,
        confusable_names=0,
        other_edits=0,
        corpus_tokens=0,
    )
