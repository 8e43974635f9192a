"""`EditingModule`: the Lightning side that every method shares. An epoch is an edit batch, a step an optimiser step.

A method writes its algorithm as one generator, `edit`: it yields the phases that need optimiser steps and
returns what came of them. Everything else (loading, seeding, fresh optimisers, committing, resuming) is here.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn

from kedit.data.datamodule import EditData
from kedit.data.schedule import EditSchedule
from kedit.delta.delta import Delta
from kedit.delta.serialization import pack, unpack
from kedit.errors import KeditError
from kedit.methods.base.callback import call_hooks, data_of
from kedit.methods.base.committed import AppliedEdits, Outcomes, as_entry, outcomes_of
from kedit.methods.base.contract import Contract
from kedit.methods.base.edit_batch import EditBatch, batch_seed
from kedit.methods.base.edit_loop import PhaseRunner
from kedit.methods.base.holder import ModelHolder
from kedit.methods.base.phase import Phase
from kedit.methods.base.resume import check_loops, read_state, taking_back
from kedit.model.lm import LMConfig
from kedit.model.tokenization import TooLong
from kedit.request import EditRecord
from kedit.runtime import distributed
from kedit.runtime.checkpoint_file import seal
from kedit.runtime.journal import Entry
from kedit.runtime.option_values import check_values

Regime = Literal["single", "batch", "sequential"]


class EditingModule(ModelHolder, Contract):
    """Base of all methods; what a method itself defines is in `Contract`.

    Args:
        lm: The model to edit.
        regime: `single`: each request on the unedited model. `batch`: an edit batch at once on the unedited
            model. `sequential`: edit batches accumulate and are never rolled back.
        lanes: In the single regime, how many requests are optimised side by side; 0 lets kedit choose.
        seed: Every edit batch seeds itself from this and its number.

    Attributes:
        edits_done: EditProgram batches committed or measured so far.
    """

    regimes: tuple[Regime, ...] = ("single", "batch", "sequential")

    found_out: tuple[str, ...] = ("model", "contexts")
    """What `describe` says that is known only once the run has started, or may differ when it is resumed."""

    merges_deltas = False
    """Whether checkpoints keep the sum of the deltas: where they touch the same lines again and again (PAC)."""

    def __init__(self, lm: LMConfig, regime: Regime, lanes: int, seed: int) -> None:
        check_values({"lanes": lanes, "seed": seed}, "model")
        super().__init__(lm, lanes)
        if regime not in self.regimes:
            raise KeditError(f"model.regime: {type(self).__name__} knows {', '.join(self.regimes)}, not {regime!r}")
        self.strict_loading = False
        self.regime: Regime = regime
        self.seed = seed
        self.edits_done = 0
        self._committed = AppliedEdits(self.merges_deltas)
        self._restored: dict[str, Any] | None = None
        self._runner: PhaseRunner | None = None
        self._idle = nn.Parameter(torch.zeros(1))  # what the optimiser holds before the first phase

    def unfit_records(self, records: list[EditRecord]) -> dict[str, str]:
        """Of which records a text does not fit into the model's context, in editing or in measuring: id and why."""
        found: dict[str, str] = {}
        for record in records:
            try:
                self.check_fit(record)
                call_hooks(self.trainer, "on_check_record", self, record)
            except TooLong as error:
                found[record.request.case_id] = str(error)
        return found

    def describe(self) -> dict[str, Any]:
        """Provenance for results: method, model, protocol."""
        lm = self.lm
        return {
            "method": type(self).__name__,
            "model": lm.name,
            "model_fingerprint": lm.fingerprint,
            "dtype": str(lm.dtype).removeprefix("torch."),
            "regime": self.regime,
            "seed": self.seed,
        }

    @property
    def resumed_at(self) -> int:
        """Edit batches that the checkpoint being resumed had done; 0 in a fresh run. Valid until training starts."""
        return self.edits_done if self._restored is None else int(self._restored["edits_done"])

    @property
    def editor(self) -> EditingModule:
        """The method that changes the weights: this one, or the one that it adds to."""
        return self

    @property
    def _data(self) -> EditData:
        """The data module."""
        return data_of(self.trainer)

    @property
    def schedule(self) -> EditSchedule:
        """Which records the run edits, and when."""
        return self._data.schedule

    @property
    def deltas(self) -> list[Delta]:
        """In the sequential regime, the delta of every committed batch (or, with `merges_deltas`, their sum).

        Once the run is over, what `finish` put in their place.
        """
        return self._committed.deltas if self._committed.total is None else [self._committed.total]

    @property
    def finished(self) -> bool:
        """Whether `finish` has changed the model."""
        return self._committed.total is not None

    @property
    def outcomes(self) -> Outcomes:
        """In the sequential regime, what is known of every record edited so far: its figures and its error."""
        return self._committed.outcomes

    # -- Lightning --------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Loads the model and sizes the run: as many epochs as there are edit batches."""
        _ = self.lm
        if self.regime == "single":  # the lanes are independent, and each process has its own
            lanes, processes = self.lane_count(), distributed.world_size()
            self._data.make_schedule(lanes, lanes > 1, width=processes, rank=distributed.rank())
        else:
            self._data.make_schedule()
        rounds = self.schedule.epochs
        loop = self.trainer.fit_loop
        limit = loop.max_epochs
        if limit is None or limit < 0 or limit > rounds:
            loop.max_epochs = rounds

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The phase's own optimiser."""
        phase = self._phase
        return torch.optim.SGD([self._idle], lr=0.0) if phase is None else phase.optimizer()

    @property
    def _phase(self) -> Phase | None:
        """What is optimised now."""
        return None if self._runner is None else self._runner.phase

    def on_fit_start(self) -> None:
        """Method's preparation on the unedited model, then what a resumed run had committed."""
        self.lm.model.eval().requires_grad_(False)
        if self._restored is not None:
            with taking_back(self._checkpoint):
                self.load_method_state(self._restored["method"])
                for entry in self._restored["edits"]:
                    self.load_edit_state(entry["state"])
        self.start()
        self.edits_done = self.resumed_at
        with nullcontext() if self._restored is None else taking_back(self._checkpoint):
            self._committed.begin(self.lm, self._restored["edits"] if self._restored else [], self.device)
        self._restored = None
        if self.edits_done and self.edits_done >= self.schedule.done_after((self.trainer.max_epochs or 0) - 1):
            self._end_at_once()

    def _end_at_once(self) -> None:
        """The end of a run that was interrupted after its last edit: Lightning skips a loop without epochs, hooks too.

        What is missing is what the callbacks measure and write when training ends.
        """
        for hook in ("on_train_start", "on_train_end"):
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                getattr(callback, hook)(self.trainer, self)
        self.on_train_end()

    def on_train_epoch_start(self) -> None:
        """Takes up the epoch's edit batch."""
        self.lm.model.eval()
        index, records = self.schedule.index_of(self.current_epoch), list(self.schedule.batch_of(self.current_epoch))
        self.batch = EditBatch.of(index, records)
        seed_everything(batch_seed(self.seed, index), workers=False, verbose=False)
        call_hooks(self.trainer, "on_edit_start", self, self.batch)
        self._started = time.perf_counter()
        self._runner = PhaseRunner(
            self.edit(self.batch) if records else None, lambda: self.trainer.strategy.setup_optimizers(self.trainer)
        )
        self._runner.begin()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Moves to the next phase when one has ended; -1 ends the epoch when there is none."""
        assert self._runner is not None
        return None if self._runner.advance(batch_idx) else -1

    def training_step(self, batch: list[EditRecord], batch_idx: int) -> Tensor | None:
        """The method's loss; nothing to learn from in a step that is taken because other processes need it."""
        loss = None if self._phase is None else self._phase.loss()
        return (self._idle * 0).sum() if loss is None and distributed.world_size() > 1 else loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The phase's masks, on gradients that mixed precision has unscaled."""
        if self._phase is not None:
            self._phase.before_step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Clamps, projections and freezing of the phase, and its figures to the loggers."""
        if self._phase is not None:
            self._phase.after_step()
            self.log_dict(self._phase.logs(), batch_size=len(self.batch.records))

    def on_train_epoch_end(self) -> None:
        """Ends the edit, commits it where edits accumulate, and lets the callbacks measure."""
        assert self._runner is not None
        self._runner.finish()  # the steps may be spent; with fast_dev_run there was only one
        deltas = self._runner.deltas
        if self.regime != "sequential":
            deltas = [None if delta is None else self._finished(delta) for delta in deltas]
        if self.regime != "single" and distributed.world_size() > 1:  # one model: all go on with the same bits
            packed = distributed.from_first(lambda: [None if d is None else pack(d) for d in deltas])
            if not distributed.is_main():
                deltas = [None if d is None else unpack(d).to(self.device) for d in packed]
        self.batch.finish(deltas, time.perf_counter() - self._started)
        if self.regime == "sequential":
            self._committed.add(self.batch)
            self.after_commit(self.batch)
        self.edits_done = self.schedule.done_after(self.trainer.current_epoch)
        call_hooks(self.trainer, "on_edit_end", self, self.batch)

    def _finished(self, delta: Delta) -> Delta:
        """A delta that is all that is changed, as `finish` leaves it."""
        found = self.finish(delta)
        return delta if found is None else found

    def finish_run(self) -> None:
        """Lets `finish` have its say, once. Whoever measures or keeps the end of a run calls this first."""
        self._committed.finish(self.finish, self.device)

    def on_train_end(self) -> None:
        """Also where nobody has measured the end."""
        self.finish_run()

    # -- checkpoints: deltas and state, never the base weights -------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the edits so far (unless a journal has them), the method's state and the number of batches done."""
        checkpoint["state_dict"] = {}
        checkpoint["optimizer_states"] = []
        edits = checkpoint.get("kedit") or {"edits": [self.edits()] if self.regime == "sequential" else []}
        own = {"edits_done": self.edits_done, "method": self.method_state(), "run": self._identity()}
        checkpoint["kedit"] = edits | own
        seal(checkpoint)  # Lightning asks the module last

    def edits(self, batch: EditBatch | None = None) -> Entry:
        """What one edit batch of a sequential run has added, or all so far, as a checkpoint or its journal holds it."""
        if batch is not None:
            return as_entry(batch.deltas, outcomes_of(batch), self.edit_state(batch.records))
        records = self.schedule.edited_in(self.edits_done)
        return as_entry(self._committed.deltas, self.outcomes, self.edit_state(records))

    def _identity(self) -> dict[str, Any]:
        """What a run must share with the checkpoint that it goes on from."""
        schedule = self.schedule
        same = {key: value for key, value in self.describe().items() if key not in self.found_out}
        counts = {"edit_batches": len(schedule.batches), "processes": distributed.world_size()}
        return same | {"data": schedule.fingerprint} | counts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint is of this run's model and method."""
        self._restored = read_state(self._identity(), self._checkpoint, len(self.schedule.batches))
        check_loops(self._checkpoint, checkpoint["loops"].get("fit_loop"), self.trainer.fit_loop.state_dict())

    @property
    def _checkpoint(self) -> Path:
        """That which is gone on from."""
        return Path(str(self.trainer.ckpt_path))
