"""`kedit slurm`: a sweep as an array job. `submit`, `status`, `resubmit`, `collect`."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kedit.cli.commands.collect import collect
from kedit.cli.commands.sweep import WHICH, check_options, open_sweep
from kedit.cli.options.found import found_configs
from kedit.errors import KeditError, shown
from kedit.runtime.shipped import slurm_path
from kedit.sweeps.folder import PLAN, Numbered, SweepFolder, ranges
from kedit.sweeps.slurm.options import SlurmOptions
from kedit.sweeps.slurm.queue import check_sbatch
from kedit.sweeps.slurm.submission import Job, commands, jobs_of, progress, submissions, submit, waiting

log = logging.getLogger(__name__)

USAGE = """\
usage: kedit slurm COMMAND SWEEP [OPTIONS]

  submit    submit the tasks that are neither done nor in the queue:  kedit slurm submit slurm/sweeps/smollm2.yaml
  status    what became of every task:                                kedit slurm status runs/sweeps/smollm2
  resubmit  submit again what did not finish, with the same options:  kedit slurm resubmit runs/sweeps/smollm2
  collect   the table, as kedit collect:                              kedit slurm collect runs/sweeps/smollm2

SWEEP is a sweep file, or the folder of its results. kedit slurm COMMAND --help lists the options of a command.
"""


def slurm(words: list[str]) -> None:
    """Run one of the commands.

    Args:
        words: What stands after `kedit slurm`.

    Raises:
        KeditError: A bad sweep or option, no sbatch here, or a refusal of it.
    """
    if not words or words[0] in ("-h", "--help"):
        Console(soft_wrap=True, highlight=False).print(USAGE, end="", markup=False)
        return
    known = {"submit": _submit, "status": _status, "resubmit": _resubmit}
    if words[0] == "collect":
        collect(words[1:], "kedit slurm collect")
    elif words[0] in known:
        known[words[0]](words[1:])
    else:
        raise KeditError(f"there is no command {shown(words[0])}; there are {', '.join(known)}, collect")


def _submit(words: list[str]) -> None:
    about = "Submit the tasks of a sweep that are neither done nor in the queue, as one array."
    args = _options("submit", about).parse_args(found_configs(words, slurm_path))
    _send(open_sweep(args.sweep, args.out), args)


def _resubmit(words: list[str]) -> None:
    about = "Submit again what did not finish. Options not given are those of the last submission."
    parser = _options("resubmit", about)
    words = found_configs(words, slurm_path)
    args = parser.parse_args(words)
    folder = open_sweep(args.sweep, args.out)
    before = submissions(folder.path)
    if not before:
        raise KeditError(
            f"{folder.path}: nothing was submitted yet; kedit slurm submit does that "
            "(where it was given --out DIR: kedit slurm resubmit DIR)"
        )
    parser.set_defaults(before[-1]["options"])
    _send(folder, parser.parse_args(words))


def _send(folder: SweepFolder, args: Any) -> None:
    options = SlurmOptions(**{field.name: args[field.name] for field in dataclasses.fields(SlurmOptions)})
    if not args.dry_run:
        check_sbatch()
    todo = [numbered for numbered in folder.tasks if numbered.state not in ("done", "running")]
    in_queue = waiting(folder.path)
    tasks = [numbered for numbered in todo if numbered.index not in in_queue]
    if not tasks:
        log.info("nothing to submit: %s", _count(progress(folder)))
        return
    check_options(tasks)
    if options.gpus > 1:
        _check_devices(tasks, options.gpus)
    jobs = jobs_of(folder, tasks, options, _stats(tasks) if options.stats else [])
    if args.dry_run:
        _print(jobs)
        return
    numbers = submit(folder, tasks, options, jobs)
    for what, number in numbers.items():
        log.info("%s: job %s", f"array {ranges([t.index for t in tasks])}" if what == "array" else what, number)
    log.info("how it goes: kedit slurm status %s", folder.path)


def _check_devices(tasks: Sequence[Numbered], gpus: int) -> None:
    """Several GPUs for tasks that would use one of them."""
    from kedit.cli.commands.fit import parsed  # takes seconds

    for numbered in tasks:
        devices = parsed(numbered.words).trainer.devices
        if str(devices) not in ("auto", "-1", str(gpus)):
            raise KeditError(
                f"gpus: {gpus}, but {numbered.name} has trainer.devices: {devices}; "
                f"give the sweep's options trainer.devices: {gpus}, or one GPU to each task"
            )


def _stats(tasks: Sequence[Numbered]) -> list[list[str]]:
    from kedit.cli.commands.fit import parsed
    from kedit.sweeps.slurm.covariance_job import stats_commands  # these take seconds

    return stats_commands([parsed(numbered.words) for numbered in tasks])


def _print(jobs: Sequence[Job]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for job, command in zip(jobs, commands(jobs), strict=True):
        console.print(f"# {job.path}\n{job.text}", markup=False)
        console.print(f"# {command}\n", markup=False)


def _status(words: list[str]) -> None:
    parser = ArgumentParser(prog="kedit slurm status", exit_on_error=False, description="What became of every task.")
    _add_sweep(parser)
    args = parser.parse_args(words)
    folder = open_sweep(args.sweep, args.out)
    rows = list(progress(folder))
    table = Table(box=None, pad_edge=False)
    for column in ("", "task", "state", ""):
        table.add_column(column, overflow="fold")
    for numbered, state, said in rows:
        table.add_row(str(numbered.index), escape(numbered.name), state, escape(said))
    console = Console(highlight=False)
    console.print(table)
    console.print(_count(rows))
    if not (folder.path / PLAN).exists():
        hint = f"nothing was begun in {folder.path}; where submit was given --out DIR: kedit slurm status DIR"
        console.print(hint, markup=False, soft_wrap=True)


def _count(rows: Any) -> str:
    states = Counter(state for _, state, _ in rows)
    return ", ".join(f"{number} {state}" for state, number in states.items()) + f" of {states.total()}"


def _options(command: str, about: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"kedit slurm {command}", exit_on_error=False, description=about)
    parser.add_argument("-c", "--config", action="config", help="YAML file with the options below.")
    _add_sweep(parser)
    parser.add_class_arguments(SlurmOptions)
    dry = "Print the scripts and the commands; write and submit nothing."
    parser.add_argument("--dry-run", "--dry_run", action="store_true", help=dry)
    return parser


def _add_sweep(parser: ArgumentParser) -> None:
    parser.add_argument("sweep", type=str | None, nargs="?", default=None, help=WHICH)
    out = "Folder of the results; null: runs/sweeps/NAME."
    parser.add_argument("--out", type=str | None, default=None, help=out)
