"""Steps beyond those that were planned for an epoch: phases that were cut up, as memory is short, take more of them."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from kedit.methods.base.edit_loop import PhaseRunner
from kedit.runtime import distributed

if TYPE_CHECKING:
    from kedit.methods.base.module import EditingModule


def take_more_steps(module: EditingModule, runner: PhaseRunner) -> None:
    """Takes the steps that the phases of the epoch still need, as Lightning takes them; their figures are not logged.

    Nothing happens where no work was made smaller for want of memory, or where the trainer limits the steps.
    """
    trainer = module.trainer
    short = runner.full or module.lm.room.limited
    if not any(distributed.gather(short)) or trainer.limit_train_batches != 1.0:
        return
    loop, step = trainer.fit_loop.epoch_loop.automatic_optimization, int(trainer.num_training_batches)
    while runner.advance(step):
        loop.run(trainer.optimizers[0], step, OrderedDict(batch=module.batch.records, batch_idx=step))
        runner.after_step(trainer.optimizers[0])
        step += 1
