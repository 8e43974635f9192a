"""Covariance of the keys, the second moment C that ROME, MEMIT and their kin need (docs/statistics.md)."""

from kedit.stats.api import corpus_lines, covariances
from kedit.stats.collect import collect
from kedit.stats.config import StatsConfig
from kedit.stats.covariance import RIDGE, Covariance, woodbury
from kedit.stats.store import load_covariance, save_covariance

__all__ = [
    "RIDGE",
    "Covariance",
    "StatsConfig",
    "collect",
    "corpus_lines",
    "covariances",
    "load_covariance",
    "save_covariance",
    "woodbury",
]
