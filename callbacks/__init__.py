"""Lightning callbacks around edits: metrics, results, robustness, texts, similarity, importance, ..."""

from kedit.callbacks.ability import Ability
from kedit.callbacks.checkpoint import EditCheckpoint
from kedit.callbacks.importance import PathImportance
from kedit.callbacks.latent import LatentFigures
from kedit.callbacks.metrics import EditMetrics
from kedit.callbacks.perplexity import Perplexity
from kedit.callbacks.progress import EditProgress
from kedit.callbacks.protocol import NamedProtocol
from kedit.callbacks.results import ResultsWriter
from kedit.callbacks.robustness import Robustness
from kedit.callbacks.similarity import WhitenedSimilarity
from kedit.callbacks.stopping import StopAtSignal
from kedit.callbacks.table import ResultTable
from kedit.callbacks.texts import Texts
from kedit.methods.base.callback import EditCallback

__all__ = [
    "Ability",
    "EditCallback",
    "EditCheckpoint",
    "EditMetrics",
    "EditProgress",
    "LatentFigures",
    "NamedProtocol",
    "PathImportance",
    "Perplexity",
    "ResultTable",
    "ResultsWriter",
    "Robustness",
    "StopAtSignal",
    "Texts",
    "WhitenedSimilarity",
]
