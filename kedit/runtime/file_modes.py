"""Who may read a file: as the umask says, also where the library that writes it thinks of its owner alone.

safetensors makes files that only their owner can read. A cache, a model or a delta may be shared by a group.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def as_umask(path: Path) -> None:
    """Give a file the mode of any new file beside it: a file is made there to see, for only the system knows.

    Args:
        path: A file of the user's own. Where modes cannot be changed (some network disks) it stays as it is.
    """
    made = path.with_name(f".{path.name[:100]}.{os.getpid()}.mode")
    with suppress(OSError):
        try:
            made.touch(0o666)
            path.chmod(made.stat().st_mode & 0o777)
        finally:
            made.unlink(missing_ok=True)
