"""`FineTuning`: what FT and LocFT share: texts, regimes, lanes, phases, and what results say of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from typing import Any, Self

import torch

from kedit.delta.delta import Delta
from kedit.errors import KeditError, at_least
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.base.module import EditingModule
from kedit.methods.base.phase import EditProgram, Phase
from kedit.methods.fine_tuning.all_parameters import AllParameters, check_memory
from kedit.methods.fine_tuning.dense_changes import DenseChanges
from kedit.methods.fine_tuning.matrices import check_matrices, trained_paths
from kedit.methods.fine_tuning.texts import Text, end_of_text, text_of
from kedit.methods.fine_tuning.tune_phase import Recipe, TunePhase
from kedit.methods.locate_then_edit.base import finite
from kedit.model.architecture import check_layers, weight
from kedit.model.lm import LMConfig
from kedit.runtime.room import TUNING, phases_in_parts


class FineTuning(EditingModule):
    """Base of the methods that train matrices of some layers, or every parameter, on the requests' own texts.

    Args:
        matrices: Which maps of the layers are trained; None: filled in by `setup`.
        weight_decay: Adam's L2 penalty on what is trained.
        target_eos: Whether an end of text follows the target.
        cached: Run the layers below the lowest trained one once, and not in every step.
    """

    needs_subject = False
    merges_deltas = True  # each as large as what it changes

    layer_option = "model.layers"
    """The option that names the layers."""

    bound: float | None = None
    """Most that an entry may change; None: any amount."""

    whole = False
    """Whether every parameter is trained."""

    def __init__(self, matrices: Sequence[str] | None, weight_decay: float, target_eos: bool, cached: bool) -> None:
        super().__init__()
        check_matrices(matrices)
        at_least("model.weight_decay", weight_decay, 0.0)
        self.matrices, self.weight_decay = matrices, weight_decay
        self.target_eos, self.cached = target_eos, cached
        self.paths: list[str] = []

    @property
    @abstractmethod
    def edited_layers(self) -> list[int]:
        """Layers with something that is trained, unless all parameters are; known after `setup`."""
        raise NotImplementedError

    @abstractmethod
    def recipe(self) -> Recipe:
        """How they are trained."""
        raise NotImplementedError

    @abstractmethod
    def fill_in(self) -> None:
        """Gives what the user left null the model's values."""
        raise NotImplementedError

    def configure(self, lm: LMConfig | None = None, edit: EditConfig | None = None) -> Self:
        """As every method's; every parameter cannot be trained in lanes."""
        if self.whole and edit is not None and edit.lanes not in (0, 1):
            raise KeditError(f"edit.lanes: with parameters: all there are no lanes, not {edit.lanes}; leave it out")
        return super().configure(lm, edit)

    def setup(self, stage: str) -> None:
        """Fills in the model's own values, finds what is trained, and sizes the run."""
        self.fill_in()
        if self.target_eos:
            end_of_text(self.lm)
        if not self.whole:
            check_layers(self.lm.arch, self.edited_layers, self.layer_option)
            self.paths = trained_paths(self.lm, self.edited_layers, list(self.matrices or ()))
        super().setup(stage)
        recipe = self.recipe()
        n = 1 if self.regime == "single" else self.schedule.size
        self.steps_per_batch = recipe.passes * -(-n // recipe.mini_batch)

    def lane_count(self) -> int:
        """Requests that are trained side by side; on a GPU as many as take a quarter of its memory."""
        if self.whole:
            return 1
        most = super().lane_count()
        device = self.trainer.strategy.root_device
        if self.lanes or device.type != "cuda":
            return most
        numbers = sum(weight(self.lm.model.get_submodule(path)).numel() for path in self.paths)
        total = torch.cuda.get_device_properties(device).total_memory
        return max(1, min(most, total // 4 // (16 * numbers)))  # change, gradient, two moments, in float32

    def start(self) -> None:
        """Whether every parameter can be trained here."""
        if self.whole:
            check_memory(self.lm)

    def edit(self, batch: EditBatch) -> EditProgram:
        """Trains: each request by itself (in lanes where there are some), or those of the edit batch together."""
        generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        loss = self.recipe().loss
        texts = [text_of(self.lm, record.request, loss, self.target_eos) for record in batch.records]
        alone, everything = self.regime == "single", range(len(texts))
        if alone and not self.whole:
            run = lambda part: self._tuned(batch, texts, part, True, generator)  # noqa: E731
            groups = yield from phases_in_parts(self.lm.room, TUNING, everything, run)
            return [delta for group in groups for delta in group]
        deltas: list[Delta | None] = []
        for group in [[i] for i in everything] if alone else [everything]:
            deltas += yield from self._tuned(batch, texts, group, False, generator)
        return deltas

    def _tuned(
        self, batch: EditBatch, texts: list[Text], group: Sequence[int], in_lanes: bool, generator: torch.Generator
    ) -> Generator[Phase, None, list[Delta | None]]:
        """Trains some of the requests: each in a lane of its own, or all together."""
        weights = self._weights(len(group) if in_lanes else 1)
        with weights.opened():
            first = min(self.edited_layers) if self.cached and not self.whole else 0
            own = [texts[i] for i in group]
            phase = TunePhase(self.lm, weights, own, self.recipe(), in_lanes, first, generator)
            yield phase
            phase.close()
            found = [weights.delta(lane) for lane in range(len(group) if in_lanes else 1)]
        for place, i in enumerate(group):
            self._report(batch, i, phase, place, found[place if in_lanes else 0])
        failed = [batch.outcomes[i].error is not None for i in group]  # together: all of them or none
        return [None if failed[place] else delta for place, delta in enumerate(found)]

    def _weights(self, lanes: int) -> DenseChanges | AllParameters:
        """What is trained, at no change."""
        if self.whole:
            return AllParameters(self.lm, self.bound, self.weight_decay)
        return DenseChanges(self.lm, self.paths, lanes, self.bound, self.weight_decay)

    def _report(self, batch: EditBatch, i: int, phase: TunePhase, place: int, delta: Delta) -> None:
        """Figures of a request's edit; why it failed, where it did."""
        steps, numbers = phase.taken[place], [tensor for _, tensor in delta.numbers()]
        info = {"steps": steps, "loss": finite(phase.losses[place])}
        lost = phase.failed if not phase.in_lanes else phase.failed & {place}
        if lost or not all(bool(tensor.isfinite().all()) for tensor in numbers):
            why = f"the loss or a weight is not finite after {steps} steps; a smaller model.lr may help"
            batch.outcomes[i].report(info, why)
            return
        largest = max(float(tensor.abs().max()) for tensor in numbers)
        batch.outcomes[i].report(info | {"delta_norm": delta.norm(), "delta_max": largest}, None)

    def describe(self) -> dict[str, Any]:
        """Provenance: what the methods share."""
        return super().describe() | {
            "matrices": None if self.whole else list(self.matrices or ()),
            "weight_decay": self.weight_decay,
            "target_eos": self.target_eos or self.ends_targets,
            "cached": self.cached,
        }
