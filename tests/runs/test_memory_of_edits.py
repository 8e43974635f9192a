"""What an edit took is free before the next one, with no wait for the garbage collector, which counts no bytes."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from lightning.pytorch import Trainer

from kedit.callbacks import EditCallback
from kedit.cli.options.parts import TRAINER_DEFAULTS
from kedit.data import EditData
from kedit.methods.base.edit_config import EditConfig
from kedit.request import EditRecord, EditRequest
from kedit.runtime.live_peak import LivePeak
from tests.runs.test_contract import ENTRIES, NAMES, TINY
from tests.support.device import ACCELERATOR
from tests.support.tiny_models import tiny_lm


class Alike(EditData):
    """Requests that take the same memory."""

    def read(self) -> list[EditRecord]:
        return [EditRecord(EditRequest(str(i), "The capital of {} is", f"Peru{i}", "Rome"), ()) for i in range(4)]


class Now(EditCallback):
    """Bytes that are alive when an edit begins, the model's own not among them."""

    def __init__(self, live: LivePeak) -> None:
        self.live = live
        self.found: list[int] = []

    def on_edit_start(self, *args: Any) -> None:
        self.found.append(self.live.now)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_an_edit_waits_for_the_garbage_collector(name: str) -> None:
    lm = tiny_lm("llama", **TINY)
    module = ENTRIES[name].make().configure(edit=EditConfig("single", 1 if ENTRIES[name].lanes else 0))
    module.use_lm(lm)
    live = LivePeak([*lm.model.parameters(), *lm.model.buffers()])
    now = Now(live)
    settings = TRAINER_DEFAULTS | {"accelerator": ACCELERATOR, "logger": False, "enable_checkpointing": False}
    trainer = Trainer(**settings, callbacks=[now])
    gc.collect()
    gc.disable()
    try:
        with live:
            trainer.fit(module, datamodule=Alike(batch_size=1))
    finally:
        gc.enable()
    _, second, third, fourth = now.found
    assert third == second or name == "KN", "KN edits as many numbers as it finds neurons"
    assert fourth <= second + 1024
    if name in ("FT", "LocFT", "LoRA"):  # of what is trained, its gradient and two moments, the delta alone is left
        delta = sum(tensor.nbytes for own in module.batch.deltas if own is not None for _, tensor in own.numbers())
        assert second < 2.2 * delta + 2048
