"""The log of the command: kedit's messages as plain lines, other libraries' warnings."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kedit.runtime import launcher
from kedit.runtime.quiet_lightning import quiet_lightning as quiet_lightning


def set_up_logging() -> None:
    """kedit's messages as plain lines on standard error; other libraries' from WARNING on.

    Of a run's processes the first speaks for all. Where standard error is no terminal, tqdm draws no bars: each step of
    one would be a line of its own in a log file. tqdm reads this when it is imported.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    level = os.environ.get("KEDIT_LOG", "INFO") if launcher.number() == 0 else "ERROR"
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "filelock", "fsspec", "urllib3", "datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def brief_log(*names: str) -> Iterator[None]:
    """Inside, these parts of kedit tell warnings alone.

    Args:
        names: Of loggers below `kedit`; none: what matters to a run over a data set, and not to a single edit.
    """
    loggers = [logging.getLogger(f"kedit.{name}") for name in names or ("data", "forward.binding", "covariance.api")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
