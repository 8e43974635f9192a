"""`Claim`: the folder of a run, made at once and this process's alone until the run ends.

Two runs of one name never share a folder: a new one gets `NAME-2`, `NAME-3`, ...; one that would go on with a run that
is being run is refused. The lock vanishes with the process. A run that fails at its start leaves no folder.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from kedit.errors import CannotWrite, KeditError
from kedit.runtime.files import make_folder
from kedit.runtime.lock import held, hold
from kedit.runtime.run_folder import CHECKPOINT, CONFIG, LOGS, RESULTS, RUN, finished

LOCK = ".run.lock"

log = logging.getLogger(__name__)


class Claim:
    """To be entered around a run, whose first process calls `take`.

    Where it is left with an error, a folder that it has made and that holds no results goes.
    """

    def __init__(self) -> None:
        self._lock: int | None = None
        self._made: list[Path] = []  # folders, innermost first

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and self._lock is not None and self._made:
            self._drop(self._made[0])
        self.release()

    def take(self, root: Path, name: str, resume: bool) -> int:
        """Chooses the folder of a new run, makes and locks it; or that of the run to go on with.

        Args:
            root: Where the runs are.
            name: Name of the run.
            resume: Go on in the newest folder of that name, if there is one. A run that has finished is not locked.

        Returns:
            Which folder of that name (`numbered`).

        Raises:
            CannotWrite: A folder cannot be made.
            KeditError: The run to go on with is being run by another process.
        """
        try:
            return self._take(root, name, resume)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise CannotWrite(f"run.name: a folder {name[:80]!r} cannot be made in {root}: {why}") from None

    def _take(self, root: Path, name: str, resume: bool) -> int:
        parent = numbered(root, name, 1).parent
        missing = [path for path in (parent, *parent.parents) if not path.exists()]
        make_folder(parent, "run.root")
        self._made = missing
        taken = list(_taken(root, name))
        if resume and not taken:
            log.info("run.resume: there is no run %s in %s, so this starts a new one", name, root)
            if _make(folder := numbered(root, name, 1)) and self._hold(folder):
                self._made = [folder, *missing]
                return 1
            taken = [1]  # another process was faster
        if resume:
            folder = numbered(root, name, taken[-1])
            if not finished(folder) and not self._hold(folder):
                raise KeditError(
                    f"run.resume: {folder} is being run by another process; wait, or give another run.name"
                )
            self._made = [folder, *missing] if _bare(folder) else missing
            return taken[-1]
        number = 1
        while True:
            folder = numbered(root, name, number)
            if (_make(folder) or _bare(folder)) and self._hold(folder):
                if _bare(folder):
                    self._made = [folder, *missing]
                    return number
                self.release()  # another process was faster, and is over
            if held(folder / LOCK):
                log.info("%s is being run by another process, so this run gets another folder", folder)
            number += 1

    def keep(self) -> None:
        """Leave the folder, whatever is in it: the user is told that it can be resumed."""
        self._made = []

    def release(self) -> None:
        """Gives up the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _hold(self, folder: Path) -> bool:
        self._lock = hold(folder / LOCK)
        return self._lock is not None

    def _drop(self, folder: Path) -> None:
        """Takes away what a run without results has written, and the folders that are empty then."""
        results = folder / RESULTS
        if (folder / CHECKPOINT).exists() or (results.exists() and results.stat().st_size):
            return
        with suppress(OSError):
            for name in (CONFIG, RUN, RESULTS, LOCK):
                (folder / name).unlink(missing_ok=True)
            if (folder / LOGS).is_dir():
                shutil.rmtree(folder / LOGS)
            for path in self._made:
                path.rmdir()


def numbered(root: Path, name: str, number: int) -> Path:
    """The folder of a run of that name: the first, or `NAME-2`, `NAME-3`, ..."""
    return root / (name if number == 1 else f"{name}-{number}")


def begun(folder: Path) -> bool:
    """Whether there is anything of a run in a folder."""
    return folder.is_dir() and not _bare(folder)


def _taken(root: Path, name: str) -> Iterator[int]:
    """Numbers of the folders that there are, in order."""
    number = 1
    if numbered(root, name, 1).exists():
        yield 1
    while numbered(root, name, number := number + 1).exists():
        yield number


def _make(folder: Path) -> bool:
    """Whether a folder was made; False where something of that name is there."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _bare(folder: Path) -> bool:
    """Whether a folder holds nothing but a lock: its run was killed before it wrote anything."""
    return folder.is_dir() and all(path.name == LOCK for path in folder.iterdir())
