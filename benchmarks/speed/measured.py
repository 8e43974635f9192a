"""What the speed benchmarks of PAC measure with: rounds in which the ways take turns, and the peak of live memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from benchmarks.common import timed
from kedit.model.lm import LM
from kedit.runtime.live_peak import LivePeak

T = TypeVar("T")
Figures = dict[str, dict[str, Any]]


def take_turns(
    ways: Mapping[str, Sequence[Callable[[], T]]], rounds: int, n: int, unit: str, device: str
) -> tuple[Figures, dict[str, list[T]]]:
    """Seconds of each way: of every part the best of some rounds, in each of which every way runs once.

    Args:
        ways: Name -> the parts of a run, in their order; one is called `dense`.
        rounds: How many.
        n: Units in a run, for seconds per unit.
        unit: What a unit is called.
        device: `cpu`, where CPU seconds make the ratios, or `cuda`, where wall seconds do.

    Returns:
        Figures of each way, and what its parts returned last.
    """
    best = {name: {clock: [float("inf")] * len(parts) for clock in ("cpu_s", "wall_s")} for name, parts in ways.items()}
    results: dict[str, list[T]] = {}
    for _ in range(rounds):
        for name, parts in ways.items():
            results[name] = []
            for i, part in enumerate(parts):
                result, seconds = timed(part, device)
                results[name].append(result)
                for clock, least in best[name].items():
                    least[i] = min(least[i], seconds[clock])
    figures: Figures = {
        name: {f"{clock}_per_{unit}": sum(least) / n for clock, least in clocks.items()}
        for name, clocks in best.items()
    }
    key = f"{clock_of(device)}_per_{unit}"
    for figure in figures.values():
        figure["times_less_than_dense"] = figures["dense"][key] / figure[key]
    return figures, results


def clock_of(device: str) -> str:
    """The clock that ratios are of."""
    return "cpu_s" if device == "cpu" else "wall_s"


def show(title: str, figures: Figures) -> None:
    """Prints a line for each way."""
    for name, figure in figures.items():
        print(title, name, {key: float(f"{value:.4g}") for key, value in figure.items()})


def peak_bytes(lm: LM, run: Callable[[], Any]) -> int:
    """Most bytes that `run` holds above the model."""
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with LivePeak([*lm.model.parameters(), *lm.model.buffers()]) as live:
        run()
    return live.peak
