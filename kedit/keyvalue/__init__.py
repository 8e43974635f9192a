"""Keys and values of a locate-then-edit method: contexts, keys, the objective of v*, closed forms, many layers."""

from kedit.keyvalue.objective import ValueObjective
from kedit.keyvalue.optimization import ValueOptimization, optimise
from kedit.keyvalue.terms import NLL, KLDivergence, State, Term, WeightDecay

__all__ = [
    "NLL",
    "KLDivergence",
    "State",
    "Term",
    "ValueObjective",
    "ValueOptimization",
    "WeightDecay",
    "optimise",
]
