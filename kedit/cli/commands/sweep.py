"""`kedit sweep`: the tasks of a sweep file one after another on this machine, or one of them for a cluster."""

from __future__ import annotations

import logging
import shlex
import signal
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console

from kedit.cli.options.messages import Interrupted, explain, of_kedit
from kedit.errors import KeditError
from kedit.runtime.hub_dataset import PREFIX
from kedit.runtime.option_values import check_path
from kedit.runtime.shipped import is_shipped, sweep_path
from kedit.sweeps.folder import PLAN, Busy, Numbered, SweepFolder
from kedit.sweeps.spec import read_sweep
from kedit.sweeps.task import run_task

log = logging.getLogger(__name__)

ABOUT = "Run the tasks of a sweep file one after another; what is done is skipped, what was interrupted goes on."
WHICH = "Which sweep? A sweep file or its name (slurm/sweeps/*.yaml), or the folder of a sweep that was begun."
ROOT = Path("runs") / "sweeps"


def sweep(words: list[str]) -> None:
    """Run what is not done yet, and say in a line per task its status.

    Args:
        words: What stands after `kedit sweep`.

    Raises:
        SystemExit: Status 1 where a task did not finish; with `--task`, that task's own.
        Interrupted: After Ctrl-C or a signal of the cluster.
        KeditError: A bad sweep file or option.
    """
    args = _arguments(words)
    folder = open_sweep(args.sweep, args.out)
    if args.dry_run:
        _list(folder)
        return
    if args.task is not None:
        _one(folder, folder.find(str(args.task)))
        return
    tasks = folder.tasks if args.only is None else [folder.find(args.only)]
    todo = [numbered for numbered in tasks if numbered.state != "done"]
    check_options(todo)
    folder.write()
    before = len(tasks) - len(todo)
    log.info("sweep %s: %d tasks, %d of them done before; %s", folder.name, len(tasks), before, folder.path)
    ended = [_run(numbered, n, len(tasks)) for n, numbered in enumerate(tasks, 1)]
    if not all(ended):
        log.info("%d of %d tasks did not finish; the same command tries them again", ended.count(False), len(tasks))
        raise SystemExit(1)
    log.info("all done; for the table: kedit collect %s", folder.path)


def open_sweep(which: str | None, out: str | None) -> SweepFolder:
    """The folder of a sweep, with the tasks of its file where a file is given. Nothing is written.

    Args:
        which: A sweep file, or a folder.
        out: The folder of a file's results; None: `runs/sweeps/NAME`.

    Raises:
        KeditError: Neither, a bad file, or a folder of something else.
    """
    if which is None:
        raise KeditError(f"{WHICH}\nFor instance: kedit sweep slurm/sweeps/smollm2.yaml --dry-run")
    check_path("sweep", which)
    if out is not None:
        check_path("out", out)
    path = Path(which)
    if path.is_dir() and not (path / PLAN).exists() and not _is_name(which):
        raise KeditError(f"{path} is not the folder of a sweep: there is no {PLAN} in it")
    if (path / PLAN).exists():
        if out is not None and Path(out) != path:
            raise KeditError(f"out: {path} is itself the folder of a sweep; --out goes with a sweep file")
        return SweepFolder(path)
    path = sweep_path(which)
    if is_shipped(path):
        log.info("sweep: %s, as it comes with kedit", path.stem)
    plan = read_sweep(path)
    return SweepFolder(Path(out) if out is not None else ROOT / plan.name).planned(plan, path)


def _is_name(which: str) -> bool:
    """Whether a sweep file has this name, beside a folder that is something else."""
    try:
        sweep_path(which)
    except KeditError:
        return False
    return True


def check_options(tasks: list[Numbered]) -> None:
    """Let `kedit fit` parse the options of every task, before the first one runs.

    Raises:
        KeditError: One is wrong; names the task's configuration and the option.
    """
    if not tasks:
        return
    from kedit.cli.commands.fit import parsed  # here, as it takes seconds: a finished sweep does not need it

    for numbered in tasks:
        try:
            check_data(parsed(numbered.words))
        except ArgumentError as error:
            raise KeditError(f"{numbered.name}: {of_kedit(error) or explain(str(error))}") from None
        except (KeditError, TypeError, ValueError) as error:
            if (message := of_kedit(error)) is None:
                raise
            raise KeditError(f"{numbered.name}: {message}") from None


def check_data(config: Any) -> None:
    """Refuse a task whose data file is not there: it would fail after the tasks before it have run.

    Args:
        config: What `kedit fit` makes of the task's words.

    Raises:
        KeditError: Names the file.
    """
    path = (config.data.get("init_args") or {}).get("path")
    if isinstance(path, str) and not path.startswith(PREFIX) and not Path(path).expanduser().exists():
        raise KeditError(
            f"data.path: {path}: no such file; data sets are yours to fetch (docs/data.md says which form)\n"
            "Put it there, or change the path in a copy of the sweep file (kedit config copy)"
        )


def _arguments(words: list[str]) -> Any:
    parser = ArgumentParser(prog="kedit sweep", exit_on_error=False, description=ABOUT)
    parser.add_argument("sweep", type=str | None, nargs="?", default=None, help=WHICH)
    out = "Folder of the results; null: runs/sweeps/NAME."
    parser.add_argument("--out", type=str | None, default=None, help=out)
    only = "Number or name of the one task to run."
    parser.add_argument("--only", type=str | None, default=None, help=only)
    task = "As --only, for an element of a Slurm array: no checks ahead, and the task's own exit status."
    parser.add_argument("--task", type=int | None, default=None, help=task)
    dry = "List the tasks and their commands, and run nothing."
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help=dry)
    return parser.parse_args(words)


def _list(folder: SweepFolder) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for numbered in folder.tasks:
        console.print(f"{numbered.index} {numbered.name} ({numbered.state})", markup=False)
        console.print(f"    kedit fit {shlex.join(numbered.words)}", markup=False)


def _one(folder: SweepFolder, numbered: Numbered) -> None:
    if not (folder.path / PLAN).exists():
        folder.write()
    if numbered.state == "done":
        log.info("%s: done before", numbered.name)
        return
    record = run_task(numbered)
    log.info("%s: %s", numbered.name, told(record))
    if record["state"] == "done":
        return
    for line in record["tail"]:
        log.info("    %s", line)
    if record["state"] == "interrupted" and record["signal"]:
        _interrupted(record["signal"], numbered)
    raise SystemExit(record["status"] or 1)


def _run(numbered: Numbered, n: int, of: int) -> bool:
    """Whether a task is done in the end."""
    place = f"[{n}/{of}] {numbered.name}"
    if numbered.state == "done":
        log.info("%s: done before", place)
        return True
    try:
        with Console(stderr=True).status(f"{place} is running"):  # on a terminal; it leaves nothing behind
            record = run_task(numbered)
    except Busy:
        log.info("%s: another process runs it", place)
        return False
    log.info("%s: %s", place, told(record))
    if record["signal"]:
        _interrupted(record["signal"], numbered)
    return record["state"] == "done"


def told(record: dict[str, Any]) -> str:
    """What became of a task, in a few words."""
    if record["state"] == "done":
        return f"done in {record['seconds']:.0f} s"
    if record["state"] == "failed":
        return f"failed (exit status {record['status']}): {record['reason']}"
    return f"interrupted: {record['reason']}"


def _interrupted(number: int, numbered: Numbered) -> None:
    kept = f"what {numbered.name} has done is kept in {numbered.folder}."
    raise Interrupted(f"{kept}\nTo go on: the same command again", 128 + signal.Signals(number).value)
