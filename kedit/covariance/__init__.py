"""Covariance of the keys, the second moment C that ROME, MEMIT and their kin need (docs/statistics.md)."""

from kedit.covariance.api import corpus_lines, covariances
from kedit.covariance.collect import collect
from kedit.covariance.config import StatsConfig
from kedit.covariance.matrix import RIDGE, Covariance, woodbury
from kedit.covariance.null_space import NullSpace
from kedit.covariance.store import load_covariance, save_covariance

__all__ = [
    "RIDGE",
    "Covariance",
    "NullSpace",
    "StatsConfig",
    "collect",
    "corpus_lines",
    "covariances",
    "load_covariance",
    "save_covariance",
    "woodbury",
]
