"""Runs of a method over requests at hand, on a model at hand, without files: its edit batches."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Trainer

from kedit.callbacks import EditCallback
from kedit.cli.options.parts import TRAINER_DEFAULTS
from kedit.data import EditData
from kedit.methods import EditingModule
from kedit.methods.base.edit_batch import EditBatch
from kedit.model.lm import LM
from kedit.request import EditRecord, EditRequest
from tests.support.device import ACCELERATOR


class Given(EditData):
    """Records of some requests, without probes."""

    def __init__(self, requests: Sequence[EditRequest], batch_size: int = 1) -> None:
        super().__init__(batch_size=batch_size)
        self.requests = requests

    def read(self) -> list[EditRecord]:
        return [EditRecord(request, ()) for request in self.requests]


class Watch(EditCallback):
    """Keeps the edit batches."""

    def __init__(self) -> None:
        self.batches: list[EditBatch] = []

    def on_edit_end(self, trainer: Trainer, module: object, batch: EditBatch) -> None:
        self.batches.append(batch)


def edit_batches(module: EditingModule, lm: LM, requests: Sequence[EditRequest], size: int = 1) -> list[EditBatch]:
    """Edits `requests` in batches of `size`."""
    module.use_lm(lm)
    watch, settings = (
        Watch(),
        TRAINER_DEFAULTS | {"accelerator": ACCELERATOR, "logger": False, "enable_checkpointing": False},
    )
    Trainer(**settings, callbacks=[watch]).fit(module, datamodule=Given(requests, size))
    return watch.batches
