"""A run's plan: its phases, the lanes that kedit would choose, and what fits where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kedit.keyvalue.published import fill_in
from kedit.methods import EditingModule
from kedit.methods.locate_then_edit.base import AUTO
from kedit.model.lm import LM
from kedit.plan.lengths import Lengths
from kedit.plan.phases import Phase, ScoringPlan, innermost, phases_of

GIB = 2**30
SIZES = (24, 48, 80)  # GiB of the GPUs that are asked about
CONTEXT = 0.6  # GiB that CUDA and its libraries take
USABLE = 0.95  # of the rest: the allocator's blocks are larger than what is in them


@dataclass(frozen=True)
class Fit:
    """Whether a run fits into so much memory.

    Attributes:
        gib: The memory.
        fits: Whether it does, with fewer lanes than usual where need be.
        lanes: The lanes that it has room for; None where there are none.
        peak: Bytes with these.
    """

    gib: int
    fits: bool
    lanes: int | None
    peak: int


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        model: Its name.
        dtype: Type of its weights.
        parameters: Numbers in it, tied ones once.
        weights: Bytes of these.
        method: The method.
        regime: How requests are edited.
        lanes: Requests side by side; None where there are no lanes.
        chosen: Whether kedit chose them.
        lengths: Of the texts.
        phases: In their order.
        fits: On GPUs.
        device: What `phases` are of: `cpu` or `cuda`.
        assumes: What is not known before a run, and is planned as if; None where all is known.
    """

    model: str
    dtype: str
    parameters: int
    weights: int
    method: str
    regime: str
    lanes: int | None
    chosen: bool
    lengths: Lengths
    phases: list[Phase]
    fits: list[Fit]
    device: str
    assumes: str | None = None

    @property
    def peak(self) -> int:
        """Bytes of the whole run at most, the model included."""
        return self.weights + total(self.phases)

    def card(self) -> dict[str, Any]:
        """JSON-able."""
        lengths = {name: value for name, value in asdict(self.lengths).items() if name != "each"}
        return {**asdict(self), "lengths": lengths, "peak": self.peak}


def total(phases: Sequence[Phase]) -> int:
    """Most bytes besides the model: of a phase, with what is kept from those before it."""
    kept = most = 0
    for phase in phases:
        most = max(most, kept + phase.peak)
        kept += phase.kept
    return max(most, kept)


def plan_of(method: EditingModule, lm: LM, lengths: Lengths, scoring: ScoringPlan, device: str) -> Plan:
    """What a run of a configured method takes.

    Args:
        method: The method. Hyperparameters that the user left null are filled in here.
        lm: The shape of the model.
        lengths: Of the texts.
        scoring: How probes are scored.
        device: `cpu` or `cuda`.
    """
    method.use_lm(lm)
    editor = innermost(method)
    assumes = _auto_layers(editor)
    _fill_in(editor)
    parameters = list({id(p): p for p in lm.model.parameters()}.values())
    weights = sum(p.numel() * p.element_size() for p in parameters)
    most = max(1, lengths.requests)
    lanes = min(most, editor.lanes or usual_lanes(device))
    found = phases_of(method, lm, lengths, lanes, device == "cuda", scoring)
    with_lanes = any(phase.lane for phase in found)
    on_gpu = min(most, editor.lanes or usual_lanes("cuda"))
    there = found if device == "cuda" else phases_of(method, lm, lengths, on_gpu, True, scoring)
    fits = [_fit(there, weights, gib, on_gpu if with_lanes else None) for gib in SIZES]
    return Plan(
        lm.name,
        str(lm.dtype).removeprefix("torch."),
        sum(p.numel() for p in parameters),
        weights,
        type(method).__name__ if editor is method else f"{type(method).__name__} ({type(editor).__name__})",
        method.regime,
        lanes if with_lanes else None,
        not editor.lanes,
        lengths,
        found,
        fits,
        device,
        assumes,
    )


def usual_lanes(device: str) -> int:
    """As `EditingModule.lane_count` has them."""
    return 4 if device == "cpu" else 32


def _auto_layers(editor: EditingModule) -> str | None:
    """Takes the layers of null where a trace would choose them, and says so: a trace needs the weights."""
    option = next((name for name in ("layer", "layers") if getattr(editor, name, None) == AUTO), None)
    if option is None:
        return None
    setattr(editor, option, None)
    return f"model.{option}: auto is planned with the layers of null; a run traces 32 facts first, which takes less"


def _fill_in(editor: EditingModule) -> None:
    from kedit.methods.fine_tuning.matrices import trained_paths
    from kedit.methods.fine_tuning.module import FineTuning

    if isinstance(editor, FineTuning):
        editor.fill_in()
        if not editor.whole:
            editor.paths = trained_paths(editor.lm, editor.edited_layers, list(editor.matrices or ()))
    elif (published := getattr(editor, "published", None)) is not None:
        fill_in(editor, published, editor.lm)
        if getattr(editor, "layers", None) is not None:
            editor.layers = sorted(editor.layers)  # type: ignore[attr-defined]


def _fit(phases: list[Phase], weights: int, gib: int, lanes: int | None) -> Fit:
    """With the most lanes that fit, of those halved again and again."""
    room = (gib - CONTEXT) * GIB * USABLE - weights
    most = lanes
    while True:
        fewer = 0 if lanes is None or most is None else lanes - most
        peak = total([replace(phase, peak=phase.peak - fewer * phase.lane) for phase in phases])
        if peak > room:  # smaller batches, which kedit takes by itself
            small = [phase.peak - fewer * phase.lane if phase.least is None else phase.least for phase in phases]
            least = total([replace(phase, peak=peak) for phase, peak in zip(phases, small, strict=True)])
            peak = int(room) if least <= room else least
        if peak <= room or most is None or most == 1:
            return Fit(gib, peak <= room, most, weights + peak)
        most = most // 2
