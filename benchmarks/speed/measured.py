"""What the speed benchmarks of PAC measure with: rounds in which the ways take turns, and the peak of live memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from benchmarks.common import timed
from kedit.model.lm import LM

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


class LivePeak(TorchDispatchMode):
    """Bytes of the tensors that operations inside made and that are alive, now and at most.

    Args:
        own: Tensors that count as the model's.
    """

    def __init__(self, own: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen = WeakIdKeyDictionary()
        for tensor in own:
            self.seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen[storage] = True
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, nbytes: int) -> None:
        self.now -= nbytes


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
