"""Sweep files: a grid over configurations and options, read, checked and expanded into tasks in a fixed order.

One task is one `kedit fit` command. Its name says what differs and does not depend on its place in the grid, so
that a sweep can grow without renaming what is done. Nothing here runs anything; docs/sweeps.md describes the file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import yaml

from kedit.errors import KeditError, shown
from kedit.runtime.moved_options import check_moved
from kedit.runtime.option_values import check_values
from kedit.runtime.shipped import config_path
from kedit.runtime.yaml_text import load_yaml, read_text

KEYS = ("name", "configs", "grid", "grid_of", "options", "exclude")
OWN = ("run", "config", "ckpt_path")
"""Options that the sweep gives every task itself."""

_OPTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Task:
    """One run of a sweep.

    Attributes:
        name: Folder of its results, unique in the sweep: configuration, grid values, and six hex digits of both.
        config: The configuration file, as the sweep names it.
        labels: Axis of the grid -> what its value is called; `config` first.
        options: What it is given besides the configuration, those common to the sweep first.
        settings: Fingerprint of all that decides its results: options and the configuration's content.
    """

    name: str
    config: str
    labels: Mapping[str, str]
    options: Mapping[str, Any]
    settings: str

    def words(self) -> list[str]:
        """What stands after `kedit fit`, without the run's folder."""
        return ["--config", self.config, *(f"--{name}={option_text(value)}" for name, value in self.options.items())]


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        name: Its name; by default that of the file.
        tasks: In the order of the file: configurations, then the grid's axes, the last one fastest.
    """

    name: str
    tasks: tuple[Task, ...]

    @property
    def fingerprint(self) -> str:
        """12 hex digits that stand for every task and its settings."""
        return _digest([(task.name, task.settings) for task in self.tasks], 12)


@dataclass(frozen=True)
class _Point:
    """One value of an axis: what it is called, and the options that it sets."""

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)


def read_sweep(path: Path) -> Sweep:
    """Read and expand a sweep file.

    Args:
        path: The file. Configurations in it are looked up from the working directory, as on the command line; those
            that come with kedit are found by name too.

    Raises:
        KeditError: Names the file and the key: no such file, not YAML, an unknown key, a configuration that does
            not exist, values that cannot be an option's, an exclusion that excludes nothing.
    """
    try:
        return _expand(path, _mapping(path))
    except KeditError as error:
        raise KeditError(f"{path}: {error}") from None


def option_text(value: Any) -> str:
    """A value as the command line writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = load_yaml(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise KeditError(f"not valid YAML{where}: {getattr(error, 'problem', None) or 'unreadable'}") from None
    if not isinstance(content, dict):
        raise KeditError("empty, or no mapping; docs/sweeps.md shows what a sweep file looks like")
    check_values(content)
    return content


def _expand(path: Path, content: dict[str, Any]) -> Sweep:
    if unknown := [str(key) for key in content if key not in KEYS]:
        raise KeditError(f"{unknown[0]}: there is no such key; there are {', '.join(KEYS)}")
    name = content.get("name", path.stem)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise KeditError(f"name: expects letters, digits, '.', '_' and '-', not {shown(name)}")
    files = _configs(content.get("configs"))
    common = _options("options", content.get("options"))
    axes, own = _axes("grid", content.get("grid"), common), _grids(content.get("grid_of"), files, common)
    tasks = [
        _task(config, dict(zip((*axes, *own[config]), points, strict=True)), common, contents)
        for config, contents in files.items()
        for points in itertools.product(*axes.values(), *own[config].values())
    ]
    named = dict.fromkeys(["config", *axes, *(axis for grid in own.values() for axis in grid)])
    kept = list(_without(tasks, content.get("exclude"), tuple(named)))
    if not kept:
        raise KeditError("exclude: no task is left")
    return Sweep(name, tuple(kept))


def _axes(where: str, grid: Any, common: Mapping[str, Any]) -> dict[str, list[_Point]]:
    """The axes of a grid with their points; none of them sets an option that all tasks are given."""
    grid = grid or {}
    if not isinstance(grid, dict):
        raise KeditError(f"{where}: expects a mapping of options to lists of values")
    axes = {str(axis): _points(f"{where}: {axis}", str(axis), values) for axis, values in grid.items()}
    for axis, points in axes.items():
        for option in dict.fromkeys(option for point in points for option in point.options):
            if option in common:
                raise KeditError(f"options: {option} is in the grid too ({where}: {axis})")
    return axes


def _grids(grids: Any, files: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, dict[str, list[_Point]]]:
    """Configuration file -> the axes that it alone has. `grid_of` names it by its path or by its name."""
    grids = grids or {}
    if not isinstance(grids, dict):
        raise KeditError("grid_of: expects a mapping of configurations to grids of their own")
    names = {name: file for file in files for name in (PurePath(file).stem, file)}
    if unknown := [str(name) for name in grids if name not in names]:
        raise KeditError(f"grid_of: {unknown[0]} is none of the configurations above")
    own: dict[str, dict[str, list[_Point]]] = {file: {} for file in files}
    for name, grid in grids.items():
        own[names[name]] |= _axes(f"grid_of: {name}", grid, common)
    return own


def _configs(names: Any) -> dict[str, Any]:
    """Configuration files and what they hold."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise KeditError("configs: expects a list of configuration files, e.g. [configs/rome_smollm2.yaml]")
    files = {}
    for name in names:
        if PurePath(name).as_posix() in files:
            raise KeditError(f"configs: {name} is listed twice")
        try:
            path = config_path(name)
        except KeditError as error:
            raise KeditError(f"configs: {error}") from None
        try:
            files[PurePath(name).as_posix()] = content = _mapping(path)
            check_moved(content)
        except KeditError as error:
            raise KeditError(f"configs: {name}: {error}") from None
    return files


def _options(where: str, options: Any) -> dict[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise KeditError(f"{where}: expects a mapping of options to values, not {shown(options)}")
    check_moved(options, f"{where}: ")
    for name, value in options.items():
        if not isinstance(name, str) or not _OPTION.fullmatch(name):
            raise KeditError(f"{where}: {shown(name)} is no option, such as edit.seed")
        if name.partition(".")[0] in OWN:
            raise KeditError(f"{where}: {name} cannot be set, the sweep does that itself")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise KeditError(f"{where}: {name}: {shown(value)} cannot be written on a command line") from None
    return options


def _points(where: str, axis: str, values: Any) -> list[_Point]:
    """An axis: an option with a list of values, or labels with several options each."""
    if isinstance(values, dict) and values:
        points = [_Point(str(label), _options(f"{where}: {label}", options)) for label, options in values.items()]
    elif isinstance(values, list) and values:
        points = [_Point(_label(axis, value), _options("grid", {axis: value})) for value in values]
    else:
        raise KeditError(f"{where}: expects a list of values, or labels with options below them, not {shown(values)}")
    seen: set[str] = set()
    for point in points:
        if (content := _canonical(point.options)) in seen:
            raise KeditError(f"{where}: {point.label} is there twice")
        seen.add(content)
    return points


def _label(axis: str, value: Any) -> str:
    """What a value is called: `seed0`, `v_lr0.5`, `false` as `mom2_adjustment-false`, a text by its last part."""
    option = axis.rpartition(".")[2]
    if isinstance(value, str) and not _number(value):
        return PurePath(value).name or option
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return f"{option}{value}"
    return f"{option}-{option_text(value)}"


def _number(text: str) -> bool:
    """Whether a text is a number to the option parser, though not to YAML (`5e-1`)."""
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) is not None


def _task(config: str, points: Mapping[str, _Point], common: Mapping[str, Any], content: Any) -> Task:
    own = {name: value for point in points.values() for name, value in point.options.items()}
    stem = PurePath(config).stem
    parts = [_safe(part) for part in (stem, *(point.label for point in points.values()))]
    digits = _digest([config, own], 6)
    return Task(
        name="-".join([*parts, digits])[-150:].lstrip("-."),
        config=config,
        labels={"config": stem, **{axis: point.label for axis, point in points.items()}},
        options={**common, **own},
        settings=_digest([content, common, own], 12),
    )


def _without(tasks: Sequence[Task], exclude: Any, axes: Sequence[str]) -> Iterator[Task]:
    """The tasks that no entry of `exclude` is about."""
    entries = [] if exclude is None else exclude
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and entry for entry in entries):
        raise KeditError("exclude: expects a list of mappings, e.g. [{config: memit_smollm2, edit.seed: 1}]")
    for n, entry in enumerate(entries, 1):
        if unknown := [key for key in entry if key not in axes]:
            raise KeditError(f"exclude: entry {n}: {unknown[0]} is neither config nor in the grid")
        if not any(_matches(task, entry) for task in tasks):
            raise KeditError(f"exclude: entry {n} is about no task of the sweep")
    yield from (task for task in tasks if not any(_matches(task, entry) for entry in entries))


def _matches(task: Task, entry: Mapping[str, Any]) -> bool:
    """Whether a task has one of the values that an entry names, on every axis that it names."""
    for axis, wanted in entry.items():
        names = {task.labels.get(axis), *([task.config] if axis == "config" else [])}
        value = {_canonical(task.options[axis])} if axis in task.options else set()
        anyone = [wanted, *(wanted if isinstance(wanted, list) else [])]  # a list may itself be the value
        if not any(w in names if isinstance(w, str) and w in names else _canonical(w) in value for w in anyone):
            return False
    return True


def _safe(label: str) -> str:
    return re.sub(r"[^\w.]+", "_", label).strip("_")[:32] or "_"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _digest(value: Any, digits: int) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()[:digits]
