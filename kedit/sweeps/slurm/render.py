"""sbatch scripts from the templates beside this file.

`{{name}}` stands for a value: one line without control characters, and quoted where the shell reads it. A line whose
value is None is left out; one whose value is a list stands once for each.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from kedit.errors import KeditError, shown
from kedit.runtime.option_values import control_in
from kedit.sweeps.folder import ranges
from kedit.sweeps.slurm.options import SlurmOptions

SCRIPTS, LOGS = "slurm", "logs"
"""Where in a sweep's folder its scripts and their output are."""

_INHERITED = "# The environment is that of the shell that called sbatch."
_OFFLINE = (
    "# Compute nodes often have no internet: models come from the cache, without a try.",
    "export HF_HUB_OFFLINE=1",
)
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def array_script(name: str, folder: Path, tasks: Sequence[int], options: SlurmOptions) -> str:
    """The array that runs tasks of a sweep.

    Args:
        name: The sweep's name.
        folder: Its folder.
        tasks: Numbers of the tasks.
        options: What an element gets.
    """
    array = ranges(tasks) + (f"%{options.throttle}" if options.throttle else "")
    values = {"array": array, "job_name": _job(name), "output": _output(folder / LOGS / "%A_%a.out")}
    return _render("array", _common(name, folder, options) | values)


def stats_script(name: str, folder: Path, commands: Sequence[Sequence[str]], options: SlurmOptions) -> str:
    """The job that computes statistics ahead of the array.

    Args:
        name: The sweep's name.
        folder: Its folder.
        commands: What stands after each `kedit stats`.
        options: What an element of the array gets; this job gets at most one GPU.
    """
    lines = [f"    srun --cpus-per-task={options.cpus} kedit stats {shlex.join(words)}" for words in commands]
    values = {"commands": lines, "job_name": _job(name, "-stats"), "one_gpu": min(1, options.gpus) or None}
    values["output"] = _output(folder / LOGS / "%j-stats.out")
    return _render("stats", _common(name, folder, options) | values)


def collect_script(name: str, folder: Path, options: SlurmOptions) -> str:
    """The job that writes the table."""
    values = {"job_name": _job(name, "-collect"), "output": _output(folder / LOGS / "%j-collect.out")}
    return _render("collect", _common(name, folder, options) | values)


def _common(name: str, folder: Path, options: SlurmOptions) -> dict[str, Any]:
    if str(folder).startswith("-") or any(c in str(folder) for c in "\"'\\"):
        raise KeditError(
            f"out: {shown(str(folder))} cannot stand in an sbatch script: a leading '-', quotes, a backslash"
        )
    return {
        "name": name,
        "folder": folder,
        "file": shlex.quote(str(folder / SCRIPTS / "array.sbatch")),
        "quoted_folder": shlex.quote(str(folder)),
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "gpus": options.gpus or None,
        "cpus": options.cpus,
        "all_cpus": options.cpus * options.processes,
        "mem": options.mem,
        "time": options.time,
        "requeues": options.requeues,
        "extra": options.extra,
        "activate": [_INHERITED if options.activate is None else options.activate],
        "offline": list(_OFFLINE) if options.offline else [],
    }


def _job(name: str, what: str = "") -> str:
    """A job's name: one word, whatever a sweep's folder is called."""
    return f"kedit-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:100]}{what}"


def _output(path: Path) -> str:
    """A path in `--output`, where '%' means something and a space would end it."""
    text = str(path.parent).replace("%", "%%") + f"/{path.name}"
    return text if re.fullmatch(r"[\w.,+:@/%=-]+", text) else f'"{text}"'


def _render(template: str, values: Mapping[str, Any]) -> str:
    for option, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            if control_in(str(one)):
                name = {"quoted_folder": "out", "folder": "out", "commands": "stats"}.get(option, option)
                raise KeditError(f"{name}: {shown(str(one))} has a control character, which no sbatch script may have")
    text = files("kedit.sweeps.slurm").joinpath("templates", f"{template}.sbatch").read_text(encoding="utf-8")
    return "".join(f"{line}\n" for line in _lines(text, values))


def _lines(text: str, values: Mapping[str, Any]) -> Iterator[str]:
    for line in text.splitlines():
        found = {name: values[name] for name in _PLACE.findall(line)}
        if None in found.values():
            continue
        several = [name for name, value in found.items() if isinstance(value, list)]
        for one in found[several[0]] if several else [None]:
            now = found | dict.fromkeys(several, one)
            yield _PLACE.sub(lambda place, now=now: str(now[place[1]]), line)
