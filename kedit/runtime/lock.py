"""Locks that vanish with their process, however it ends: `flock` on a file, which Linux passes on to NFS servers.

A file system without locks (ENOLCK, ENOSYS) has none here either.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def flock(descriptor: int) -> bool:
    """Whether the lock was free (and is now this process's)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def held(path: Path) -> bool:
    """Whether a process, perhaps this one, holds the lock of a file."""
    try:
        with path.open("r+") as file:
            return not flock(file.fileno())
    except OSError:
        return False


def hold(path: Path) -> int | None:
    """Takes the lock of a file, which is made: a descriptor, to be closed; None where another process has the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if flock(descriptor):
        return descriptor
    os.close(descriptor)
    return None
