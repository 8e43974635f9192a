"""`EditingModule`: the Lightning side that every method shares. An epoch is an edit batch, a step an optimiser step.

A method writes its algorithm as one generator, `edit`: it yields the phases that need optimiser steps and
returns what came of them. Everything else (loading, seeding, fresh optimisers, committing, resuming) is here.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn

from kedit.data.datamodule import EditData
from kedit.data.schedule import EditSchedule
from kedit.delta.delta import Delta
from kedit.errors import KeditError
from kedit.forward.binding import load_lm
from kedit.methods.base import record_checks, resume
from kedit.methods.base.about import about
from kedit.methods.base.callback import call_hooks, data_of
from kedit.methods.base.committed import AppliedEdits, Outcomes, as_entry, of_first_process, outcomes_of
from kedit.methods.base.contract import Contract
from kedit.methods.base.edit_batch import EditBatch, batch_seed
from kedit.methods.base.edit_config import EditConfig, Regime
from kedit.methods.base.edit_loop import PhaseRunner
from kedit.methods.base.more_steps import take_more_steps
from kedit.model.lm import LM, LMConfig
from kedit.request import EditRecord
from kedit.runtime import distributed
from kedit.runtime.journal import Entry
from kedit.runtime.option_values import check_values


class EditingModule(LightningModule, Contract):
    """Base of all methods; what a method itself defines is in `Contract`.

    A method's constructor takes the paper's hyperparameters; `configure` says what to edit.

    Attributes:
        regime: How requests are edited, as `EditConfig` says; so are `lanes`, `seed` and `ends_targets`.
        edits_done: Edit batches committed or measured so far.
    """

    regimes: tuple[Regime, ...] = ("single", "batch", "sequential")

    usual_regime: Regime = "single"
    """The one of a method whose `edit.regime` is left out."""

    trains_target = True
    """Whether optimiser steps make the model say the target, so that an end of text can be trained behind it."""

    needs_subject = True
    """Whether every request must name its subject. A method that never looks for one sets it False."""

    found_out: tuple[str, ...] = ("model", "contexts")
    """What `describe` says that is known only once the run has started, or may differ when it is resumed."""

    merges_deltas = False
    """Whether checkpoints keep the sum of the deltas: where they touch the same lines again and again (PAC)."""

    takes_out_earlier = False
    """Whether an edit trains with its own earlier change taken out of the weights (LoRA), so that it must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False
        self.lm_config, self.lanes, self.recompute, self.seed, self.ends_targets = LMConfig(), 0, False, 0, False
        self.regime: Regime = self.usual_regime
        self._lm: LM | None = None
        self.edits_done = 0
        self._committed = AppliedEdits(self.merged if self.merges_deltas else None)
        self._restored: dict[str, Any] | None = None
        self._runner = PhaseRunner(None, lambda: None)
        self._idle = nn.Parameter(torch.zeros(1))  # what the optimiser holds before the first phase

    def configure(self, lm: LMConfig | None = None, edit: EditConfig | None = None) -> Self:
        """Says which model is edited and how; what is left out stays as it is.

        Args:
            lm: The model.
            edit: Regime, lanes and seed.

        Raises:
            KeditError: A regime that the method does not know, negative lanes, no seed; names the option.
        """
        if lm is not None:
            self.lm_config = lm
        if edit is not None:
            check_values(asdict(edit), "edit")
            if edit.lanes < 0:
                raise KeditError(f"edit.lanes: {edit.lanes} is negative; 0 lets kedit choose")
            regime = self.usual_regime if edit.regime is None else edit.regime
            if regime not in self.regimes:
                raise KeditError(f"edit.regime: {type(self).__name__} knows {', '.join(self.regimes)}, not {regime!r}")
            if edit.target_eos and not self.trains_target:
                raise KeditError(f"edit.target_eos: {type(self).__name__} trains no target; leave the option out")
            self.regime, self.lanes, self.recompute, self.seed = regime, edit.lanes, edit.recompute, edit.seed
            self.ends_targets = edit.target_eos
            if self._lm is not None:
                self._lm = self._lm.ending_targets(self.ends_targets)
        return self

    @property
    def lm(self) -> LM:
        """The model, loaded on first use."""
        if self._lm is None:
            device = "cpu" if self._trainer is None else str(self.trainer.strategy.root_device)
            self.use_lm(load_lm(self.lm_config, device=device))
            assert self._lm is not None
        return self._lm

    def use_lm(self, lm: LM) -> None:
        """Edit a model that is already in memory instead of loading `lm` of the config."""
        _ = lm.fingerprint  # of the unedited weights
        self._lm = lm.ending_targets(self.ends_targets)
        self.base = lm.model  # a submodule: Lightning moves it to the device

    def prepare_records(self, records: list[EditRecord]) -> list[EditRecord]:
        """Those of some records that are to be edited (`record_checks.prepared`)."""
        return record_checks.prepared(self, records)

    def unfit_records(self, records: list[EditRecord]) -> dict[str, str]:
        """Those with a text that does not fit into the model's context, and why (`record_checks.unfit`)."""
        return record_checks.unfit(self, records)

    def lane_count(self) -> int:
        """Requests optimised side by side in the single regime."""
        return self.lanes or (4 if self.trainer.strategy.root_device.type == "cpu" else 32)

    def describe(self) -> dict[str, Any]:
        """Provenance for results: method, model, protocol."""
        return about(self)

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
        limit = self.trainer.fit_loop.max_epochs
        if limit is None or limit < 0 or limit > rounds:
            self.trainer.fit_loop.max_epochs = rounds

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The phase's own optimiser."""
        phase = self._runner.phase
        return torch.optim.SGD([self._idle], lr=0.0) if phase is None else phase.optimizer()

    def on_fit_start(self) -> None:
        """Method's preparation on the unedited model, then what a resumed run had committed."""
        self.lm.model.eval().requires_grad_(False)
        if self._restored is not None:
            resume.give_back(self, self._restored, self._checkpoint)
        self.start()
        self.edits_done = self.resumed_at
        with nullcontext() if self._restored is None else resume.taking_back(self._checkpoint):
            self._committed.begin(self.lm, self._restored["edits"] if self._restored else [], self.device)
        self._restored = None
        if self.edits_done and self.edits_done >= self.schedule.done_after((self.trainer.max_epochs or 0) - 1):
            resume.end_at_once(self)

    def on_train_epoch_start(self) -> None:
        """Takes up the epoch's edit batch."""
        self.lm.model.eval()
        index, records = self.schedule.index_of(self.current_epoch), list(self.schedule.batch_of(self.current_epoch))
        self.batch = EditBatch.of(index, records)
        seed_everything(batch_seed(self.seed, index), workers=False, verbose=False)
        call_hooks(self.trainer, "on_edit_start", self, self.batch)
        self.batch.begin()
        self._runner = PhaseRunner(
            self.edit(self.batch) if records else None, lambda: self.trainer.strategy.setup_optimizers(self.trainer)
        )
        self._runner.begin()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Moves to the next phase when one has ended; -1 ends the epoch when there is none."""
        return None if self._runner.advance(batch_idx) else -1

    def training_step(self, batch: list[EditRecord], batch_idx: int) -> Tensor | None:
        """The method's loss; nothing to learn from in a step that is taken because other processes need it."""
        loss = self._runner.loss()
        return (self._idle * 0).sum() if loss is None and distributed.world_size() > 1 else loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """That of the phase, which may run out of memory."""
        self._runner.backward(loss, self.trainer.optimizers[0])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The phase's masks, on gradients that mixed precision has unscaled."""
        self._runner.before_step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Clamps, projections and freezing of the phase, and its figures to the loggers."""
        if (logs := self._runner.after_step(self.trainer.optimizers[0])) is not None:
            self.log_dict(logs, batch_size=len(self.batch.records))

    def on_train_epoch_end(self) -> None:
        """Ends the edit, commits it where edits accumulate, and lets the callbacks measure."""
        take_more_steps(self, self._runner)
        self._runner.finish()  # the steps may be spent; with fast_dev_run there was only one
        deltas = self._runner.deltas
        if self.regime != "sequential":
            deltas = [None if delta is None else self._finished(delta) for delta in deltas]
        if self.regime != "single":  # one model: all processes go on with the same bits
            deltas = of_first_process(deltas, self.device)
        self.batch.finish(deltas)
        if self.regime == "sequential":
            self._committed.add(self.batch)
            self.after_commit(self.batch)
        self.batch.end()
        self.edits_done = self.schedule.done_after(self.trainer.current_epoch)
        call_hooks(self.trainer, "on_edit_end", self, self.batch)

    def _finished(self, delta: Delta) -> Delta:
        """A delta that is all that is changed, as `finish` leaves it."""
        found = self.finish(delta)
        return delta if found is None else found

    def finish_run(self) -> None:
        """Lets `finish` have its say, once. Whoever measures or keeps the end of a run calls this first."""
        self._committed.finish(self.finish, self.device)

    def take_back(self) -> None:
        """Puts the unedited weights back, for whoever goes on with the model; `deltas` stay."""
        self._committed.take_back()

    def on_train_end(self) -> None:
        """Also where nobody has measured the end."""
        self.finish_run()

    # -- checkpoints: deltas and state, never the base weights -------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the edits so far (unless a journal has them), the method's state and the number of batches done."""
        resume.write_state(self, checkpoint)

    def edits(self, batch: EditBatch | None = None) -> Entry:
        """What one edit batch of a sequential run has added, or all so far, as a checkpoint or its journal holds it."""
        if batch is not None:
            return as_entry(batch.deltas, outcomes_of(batch), self.edit_state(batch.records))
        records = self.schedule.edited_in(self.edits_done)
        return as_entry(self._committed.deltas, self.outcomes, self.edit_state(records))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the checkpoint is of this run's model and method."""
        self._restored = resume.read_state(resume.identity(self), self._checkpoint, len(self.schedule.batches))
        resume.check_loops(self._checkpoint, checkpoint["loops"].get("fit_loop"), self.trainer.fit_loop.state_dict())

    @property
    def _checkpoint(self) -> Path:
        """That which is gone on from."""
        return Path(str(self.trainer.ckpt_path))
