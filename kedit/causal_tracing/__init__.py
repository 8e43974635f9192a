"""Causal tracing: in which layers and at which tokens a model recalls a fact (Meng et al. 2022, ROME, section 2).

Here are the passes, what they give, and the choice of layers that methods make from it (`layers: auto`). Averages,
tables and the heat maps are in `kedit.analysis.causal_tracing` and beside it.
"""

from kedit.causal_tracing.auto import Chosen, chosen_layers
from kedit.causal_tracing.facts import Fact, facts_of, noise_level
from kedit.causal_tracing.peak import Peak, first_inner, peak_of
from kedit.causal_tracing.tracing import PARTS, FactTrace, Part, TraceConfig, trace, window_of

__all__ = [
    "PARTS",
    "Chosen",
    "Fact",
    "FactTrace",
    "Part",
    "Peak",
    "TraceConfig",
    "chosen_layers",
    "facts_of",
    "first_inner",
    "noise_level",
    "peak_of",
    "trace",
    "window_of",
]
