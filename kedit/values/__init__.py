"""Value vectors: what an edited layer should write at the subject's last token (v*)."""

from kedit.values.alignment import Alignment
from kedit.values.lanes import ValueLanes, optimise
from kedit.values.objective import ValueObjective
from kedit.values.terms import NLL, KLDivergence, State, Term, WeightDecay

__all__ = [
    "NLL",
    "Alignment",
    "KLDivergence",
    "State",
    "Term",
    "ValueLanes",
    "ValueObjective",
    "WeightDecay",
    "optimise",
]
