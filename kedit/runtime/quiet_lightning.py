"""What other libraries print that tells a user of kedit nothing, and only that. Warnings that matter stay."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# (message, module) of warnings about what kedit does on purpose
NOISE = (
    (r"Found \d+ module\(s\) in eval mode", ""),  # the edited model is in eval mode: dropout would be wrong
    (r".*LeafSpec.* is deprecated", ""),  # Lightning calls what this torch has renamed
    (r"The '?train_dataloader'? does not have many workers", ""),  # its batches are text, ready in memory
    (r"Checkpoint directory .* exists and is not empty", ""),  # a resumed run
    (r"You're resuming from a checkpoint that ended before the epoch ended", ""),  # early stop ends an epoch
    (r"The `srun` command is available", ""),  # a run on a login node
    (r"The dirpath has changed from", ""),  # a run folder that was moved
    (r"`Trainer.fit` stopped", ""),
    (r"`training_step` returned `None`", ""),  # PAC has nothing left to learn
)
LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's messages from WARNING on and once each (it adds handlers of its own), without `NOISE`.

    What the user had set of its loggers comes back afterwards.
    """
    before = [
        (logger := logging.getLogger(name), logger.level, logger.handlers[:], logger.propagate) for name in LOGGERS
    ]
    for logger, *_ in before:
        logger.setLevel(logging.WARNING)
        logger.handlers.clear()
        logger.propagate = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning|kedit\.cli")
            for message, module in NOISE:
                warnings.filterwarnings("ignore", message, module=module)
            yield
    finally:
        for logger, level, handlers, propagate in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers
            logger.propagate = propagate
