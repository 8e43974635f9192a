"""What other libraries print that tells a user of kedit nothing, and only that. Warnings that matter stay."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from kedit.runtime import launcher

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


def set_up_logging() -> None:
    """kedit's messages as plain lines on standard error; other libraries' from WARNING on.

    Of a run's processes the first speaks for all.
    """
    level = os.environ.get("KEDIT_LOG", "INFO") if launcher.number() == 0 else "ERROR"
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "filelock", "fsspec", "urllib3", "datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's messages from WARNING on and once each (it adds handlers of its own), without `NOISE`."""
    for name in (
        "lightning",
        "lightning.pytorch",
        "lightning.fabric",
        "lightning.pytorch.utilities.rank_zero",
    ):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.handlers.clear()
        logger.propagate = True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning|kedit\.cli")
        for message, module in NOISE:
            warnings.filterwarnings("ignore", message, module=module)
        yield
