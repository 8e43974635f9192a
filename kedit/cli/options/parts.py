"""What `kedit fit` is made of besides method and data: the run's options, kedit's callbacks, the trainer's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kedit.callbacks import (
    Ability,
    EditCheckpoint,
    EditMetrics,
    EditProgress,
    LatentFigures,
    PathImportance,
    Perplexity,
    ResultsWriter,
    ResultTable,
    Robustness,
    Texts,
    WhitenedSimilarity,
)
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.base.trainer_options import TRAINER_DEFAULTS as TRAINER_DEFAULTS
from kedit.model.lm import LMConfig


@dataclass
class RunConfig:
    """Where a run is kept.

    Args:
        root: Folder of all runs.
        name: Name of this one; null makes one of method, model, data, regime and seed.
        resume: Go on in the newest unfinished run of that name instead of starting a new one.
    """

    root: str = "runs"
    name: str | None = None
    resume: bool = False


CALLBACKS: Mapping[str, type] = MappingProxyType(
    {
        "metrics": EditMetrics,
        "results": ResultsWriter,
        "progress": EditProgress,
        "checkpoint": EditCheckpoint,
        "robustness": Robustness,
        "texts": Texts,
        "perplexity": Perplexity,
        "ability": Ability,
        "similarity": WhitenedSimilarity,
        "importance": PathImportance,
        "latent": LatentFigures,
        "table": ResultTable,
    }
)
"""kedit's own callbacks, by their options. They are called in this order: so the reports are printed, and so keys are
added to a row. Nothing else depends on it."""

TOP: Mapping[str, type] = MappingProxyType({"lm": LMConfig, "edit": EditConfig, "run": RunConfig, **CALLBACKS})
"""The groups at the top of a configuration, besides the classes that a user chooses and the trainer."""
