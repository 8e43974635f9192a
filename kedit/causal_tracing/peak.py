"""Where the average indirect effect at the subject's last token is greatest, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kedit.results.intervals import Floats, percentile_interval, resampled_means


@dataclass(frozen=True)
class Peak:
    """The peak over layers of a mean over facts.

    Attributes:
        layer: The layer; the lowest of layers that are alike.
        effect: The average indirect effect there.
        ci: 95 % bootstrap interval over facts, of that layer's effect.
        layers_ci: The layers between which the peak lies in 95 % of the samples of facts.
    """

    layer: int
    effect: float
    ci: tuple[float, float]
    layers_ci: tuple[int, int]

    @property
    def between(self) -> str:
        """`layers_ci` in words."""
        low, high = self.layers_ci
        return f"layer {low}" if low == high else f"layers {low} to {high}"


def peak_of(effects: Floats, first: int = 0, resamples: int = 2000, seed: int = 0) -> Peak:
    """The peak.

    Args:
        effects: Of each fact at its subject's last token, `[n_facts, n_layers]`.
        first: The lowest layer that counts.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    curve, drawn = effects[:, first:].mean(0), resampled_means(effects[:, first:], resamples, seed)
    at = int(curve.argmax())
    low, high = np.percentile(drawn.argmax(1), [2.5, 97.5], method="nearest") + first
    return Peak(first + at, float(curve[at]), percentile_interval(drawn[:, at]), (int(low), int(high)))


def first_inner(n_layers: int, window: int) -> int:
    """The lowest layer whose window of MLPs does not hold that of layer 0; 0 where there is none.

    Layer 0's MLP reads the corrupted embeddings themselves, so restoring it undoes the noise where it is put. In a
    model that does much in layer 0, every window that holds it has a large effect, whatever the other layers do.
    """
    first = window // 2 + 1
    return first if first < n_layers else 0
