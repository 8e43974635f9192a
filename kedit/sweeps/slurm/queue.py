"""sbatch, squeue and sacct: what is asked of them, and what they answer."""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kedit.errors import KeditError

PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
"""States in which a job waits; every other one that squeue names is on a node."""


def sbatch_words(script: Path, after: str | None) -> list[str]:
    """The command that submits a script.

    Args:
        script: The script.
        after: A dependency, such as `afterok:12`; a job whose dependency can no longer be met is cancelled.
    """
    dependency = [] if after is None else [f"--dependency={after}", "--kill-on-invalid-dep=yes"]
    return ["sbatch", "--parsable", *dependency, str(script)]


def check_sbatch() -> None:
    """Whether this machine can submit.

    Raises:
        KeditError: It has no sbatch.
    """
    if shutil.which("sbatch") is None:
        raise KeditError("there is no sbatch here, so nothing can be submitted (kedit sweep needs no cluster)")


def submit(script: Path, after: str | None = None) -> str:
    """Submit a script.

    Returns:
        The job's number.

    Raises:
        KeditError: There is no sbatch here, or it refuses; what it says.
    """
    words = sbatch_words(script, after)
    answer = _answer(words)
    if answer is None:
        raise KeditError("there is no sbatch here")
    done, said = answer
    number = re.fullmatch(r"(\d+)(;.*)?", said.strip().rpartition("\n")[2])
    if not done or number is None:
        lines = [line.strip() for line in said.splitlines() if line.strip()] or ["nothing"]
        raise KeditError(f"sbatch refuses {script}: {'; '.join(lines[-2:]).removeprefix('sbatch: ')}")
    return number[1]


def queued(jobs: Sequence[str]) -> dict[tuple[str, int], str] | None:
    """What waits or runs of some array jobs.

    Args:
        jobs: Numbers of array jobs.

    Returns:
        (job, element) -> state in Slurm's words. None where there is no squeue, or it does not answer.
    """
    words = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%F %K %T"]
    answer = _answer(words)
    if answer is None or not answer[0]:
        return None
    rows = [line.split() for line in answer[1].splitlines()]
    return {(row[0], int(row[1])): row[2] for row in rows if len(row) == 3 and row[0] in jobs and row[1].isdigit()}


def ended(jobs: Sequence[str]) -> dict[tuple[str, int], str]:
    """How the elements of some array jobs ended, where the cluster keeps accounts: (job, element) -> state."""
    if not jobs:
        return {}
    words = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={','.join(jobs)}"]
    answer = _answer(words)
    if answer is None or not answer[0]:
        return {}
    rows = re.findall(r"^(\d+)_(\d+)\|(\w+)", answer[1], re.MULTILINE)
    return {(job, int(element)): state for job, element, state in rows}


def _answer(words: Sequence[str]) -> tuple[bool, str] | None:
    """Whether a command did its work, and what it said; None where there is none of that name."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        return None
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, done.stdout if done.returncode == 0 else done.stderr or done.stdout
