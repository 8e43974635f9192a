"""KN's mathematics: which neurons a fact hangs on, and what is written behind them. `module.py` is the method."""

from kedit.methods.kn.attribution import Attribution, Point, points_at_once, points_of
from kedit.methods.kn.attribution_phase import AttributionPhase
from kedit.methods.kn.neurons import check_neurons, coarse, in_most_prompts, neuron_changes

__all__ = [
    "Attribution",
    "AttributionPhase",
    "Point",
    "check_neurons",
    "coarse",
    "in_most_prompts",
    "neuron_changes",
    "points_at_once",
    "points_of",
]
