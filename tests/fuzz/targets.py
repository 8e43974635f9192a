"""The targets by name, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from tests.fuzz.benchmarks import Benchmarks
from tests.fuzz.checkpoints import Checkpoints
from tests.fuzz.configs import Configs
from tests.fuzz.data import DataFiles
from tests.fuzz.deltas import Deltas
from tests.fuzz.harness import Target
from tests.fuzz.statistics import Statistics

TARGETS: Mapping[str, Callable[[Path], Target]] = MappingProxyType(
    {
        "data": DataFiles,
        "benchmarks": Benchmarks,
        "deltas": Deltas,
        "checkpoints": Checkpoints,
        "configs": Configs,
        "statistics": Statistics,
    }
)
