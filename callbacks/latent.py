"""`LatentFigures`: what edits do to the hidden states where the new object is predicted (STEAM); figures and CSV."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer

from kedit.analysis.hidden_states import Curves, Lens, Native, Scene, curves, depths_of, native, scene
from kedit.analysis.hidden_states_figure import cosine_figure, lens_figure, space_figure
from kedit.analysis.hidden_states_report import (
    COSINE_COLUMNS,
    LENS_COLUMNS,
    SPACE_COLUMNS,
    About,
    as_csv,
    cosine_lines,
    joined,
    lens_lines,
    space_lines,
)
from kedit.delta.delta import Delta
from kedit.errors import KeditError, at_least
from kedit.methods.base.callback import EditCallback, editing
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.views import arms_of
from kedit.request import EditRecord
from kedit.runtime import distributed
from kedit.runtime.files import write_figure, write_text
from kedit.runtime.progress import stage

if TYPE_CHECKING:
    from kedit.methods.steam import AnchorBank
    from kedit.methods.steam.module import STEAM

log = logging.getLogger(__name__)

ARMS: Mapping[str, str] = MappingProxyType({"edit": "steam", "editor": "editor"})
"""What the figures call an arm."""


class LatentFigures(EditCallback):
    """Draws how near edited states come to their anchors, LogitLens by layer, and some edits in a plane of states.

    `latent_cosine`, `latent_logitlens` and `latent_space`, a PNG and a CSV each, of the unedited model and STEAM, and
    of the editor alone with `model.compare`. For STEAM in the single regime. Edits whose anchor has no references are
    left out: the model told the fact is not what the edit should be compared with.

    Args:
        enabled: Measure and draw.
        max_edits: Edits that are measured: the first so many that were made and whose anchor has references.
        examples: Of these, how many get panels of their own in `latent_space`.
    """

    def __init__(self, enabled: bool = False, max_edits: int = 50, examples: int = 1) -> None:
        at_least("latent.max_edits", max_edits, 1)
        at_least("latent.examples", examples, 0)
        self.enabled, self.max_edits, self.examples = enabled, max_edits, examples
        self._native: Native | None = None
        self._seen: dict[str, list[Curves]] = {}
        self._scenes: list[Scene] = []

    @property
    def measured(self) -> int:
        """Edits measured so far."""
        return sum(len(part.raw) for part in next(iter(self._seen.values()), []))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses runs that it cannot measure.

        Raises:
            KeditError: The method is not STEAM, its term is off, or the regime is not single.
        """
        if not self.enabled:
            return
        module = _steam(pl_module)
        if module.regime != "single":
            raise KeditError(
                f"latent.enabled: states are of one edit alone; use edit.regime: single, not {module.regime}"
            )
        if module.align.off:
            raise KeditError("latent.enabled: with lambda 0 there are no anchors to measure against; see model.align")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The references' side, on the unedited model: of the objects of the edits that will be measured."""
        if not self.enabled:
            return
        module = _steam(pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        bank = _bank(module)
        records = [record for batch in data.batches for record in batch if bank.anchor(record).used]
        with stage("inner states to compare with (once a run)"):
            self._native = native(module.lm, bank.with_references(records[: self.max_edits]).values())

    def on_edit_end(self, trainer: Trainer, module: Any, batch: EditBatch) -> None:
        """Measures the batch's edits; processes measure their own, and all get all."""
        if not self.enabled or self.measured >= self.max_edits:
            return
        bank = _bank(_steam(module))
        arms = {ARMS[arm.measured_at]: arm.deltas for arm in reversed(arms_of(module.regime, batch))}
        with_references = [i for i, record in enumerate(batch.records) if bank.anchor(record).used]
        made = [i for i in with_references if all(deltas[i] is not None for deltas in arms.values())]
        start = self.measured + sum(distributed.gather(len(made))[: distributed.rank()])
        made = made[: max(0, self.max_edits - start)]
        chosen = {name: [deltas[i] or Delta() for i in made] for name, deltas in arms.items()}
        parts = distributed.gather(self._measure(module, [batch.records[i] for i in made], chosen, start))
        for curves_of, scenes in parts:
            for name, part in curves_of.items():
                self._seen.setdefault(name, []).append(part)
            self._scenes += scenes

    def _measure(
        self, module: STEAM, records: list[EditRecord], deltas: dict[str, list[Delta]], start: int
    ) -> tuple[dict[str, Curves], list[Scene]]:
        """Curves of some edits, the first of which is number `start` of the run, and the scenes of the examples."""
        if not records:
            return {}, []
        bank = _bank(module)
        anchors = torch.stack([mean for record in records if (mean := bank.anchor(record).mean) is not None])
        centre = None if self._native is None else self._native.centre
        curves_of = curves(module.lm, records, anchors, deltas, centre)
        depths = depths_of(module.lm.arch.n_layers, module.editor.edited_layers[-1], module.layers)
        scenes = []
        for place, record in enumerate(records[: max(0, self.examples - start)]):
            of_record = {name: arm[place] for name, arm in deltas.items()}
            scenes.append(scene(module.lm, record, bank.with_states(record), of_record, depths))
        return curves_of, scenes

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: what was measured so far."""
        if not self.enabled:
            return {}
        return {
            "curves": {name: asdict(joined(parts)) for name, parts in self._seen.items()},
            "scenes": [asdict(drawn) for drawn in self._scenes],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        for name, saved in state_dict.get("curves", {}).items():
            self._seen[name] = [Curves(**(saved | {"lens": Lens(**saved["lens"])}))]
        self._scenes = [Scene(**saved) for saved in state_dict.get("scenes", [])]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The files."""
        if not (self.enabled and distributed.is_main()):
            return
        if not self._seen:
            log.warning("latent: no edit was made whose anchor has references, there is nothing to draw")
            return
        module, folder = _steam(pl_module), Path(trainer.default_root_dir)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        about = About.of(module.describe(), data.describe(), module.editor.edited_layers, self.measured)
        arms = {name: joined(parts) for name, parts in self._seen.items()}
        lines = cosine_lines(arms, self._native)
        write_text(folder / "latent_cosine.csv", as_csv(lines, COSINE_COLUMNS))
        write_figure(folder / "latent_cosine.png", cosine_figure(lines, about))
        lines = lens_lines(arms, self._native)
        write_text(folder / "latent_logitlens.csv", as_csv(lines, LENS_COLUMNS))
        write_figure(folder / "latent_logitlens.png", lens_figure(lines, about))
        if self._scenes:
            write_text(folder / "latent_space.csv", as_csv(space_lines(self._scenes), SPACE_COLUMNS))
            write_figure(folder / "latent_space.png", space_figure(self._scenes, about))


def _steam(module: LightningModule) -> STEAM:
    """The module as the STEAM that has anchors.

    Raises:
        KeditError: It is another method.
    """
    from kedit.methods.steam.module import STEAM

    method = editing(module)
    if not isinstance(method, STEAM):
        raise KeditError(f"latent.enabled: {type(method).__name__} has no anchors to measure against; only STEAM does")
    return method


def _bank(module: STEAM) -> AnchorBank:
    assert module.bank is not None  # setup has refused runs without
    return module.bank
