"""The settings of a method that is named: those of the configuration that ships with kedit, where there is one.

So an edit made by one line is the edit that `kedit fit --config METHOD_MODEL` makes. A model is known by the name that
a configuration has, or by its shape; for another one they are the method's own defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from kedit import methods
from kedit.errors import KeditError, shown
from kedit.keyvalue import published
from kedit.methods.wrappers.base import EditorWrapper
from kedit.model.lm import LM
from kedit.runtime.checksum import first_line
from kedit.runtime.shipped import config_path, shipped_configs
from kedit.runtime.yaml_text import load_yaml, read_text

SLUGS: Mapping[published.Shape, tuple[str, ...]] = MappingProxyType(
    {
        published.GPT2_XL: ("gpt2_xl",),
        published.GPT_J: ("gptj",),
        published.LLAMA_2: ("llama2",),
        published.LLAMA_3: ("llama3",),
        published.MISTRAL: ("mistral",),
        published.QWEN_2: ("qwen25", "qwen2"),
        published.SMOLLM2: ("smollm2",),
    }
)
"""A model's shape -> what the names of its configurations end in."""

EDITORS: Mapping[str, str] = MappingProxyType({"rep": "rome", "steam": "rome", "rect": "memit", "prune": "memit"})
"""Of a method that adds to another one: which, where the user names none."""


@dataclass(frozen=True)
class Settings:
    """What a configuration says of the model, of how it is edited, and of the method.

    Attributes:
        model: `class_path` and `init_args` of the method.
        lm: Options of the model.
        edit: Regime, lanes and seed.
        data: Options of the data that edits depend on: `batch_size`, `queries`, `joiner`, `chat`, `system`.
        source: Name of the configuration; None: the method's own defaults.
    """

    model: dict[str, Any]
    lm: dict[str, Any] = field(default_factory=dict)
    edit: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    source: str | None = None


def method_names() -> dict[str, type[methods.EditingModule]]:
    """Every method by its name in small letters, as `kedit ls methods` lists them."""
    return {name.lower(): getattr(methods, name) for name in methods.__all__ if name != "EditingModule"}


def settings_of(name: str, lm_name: str | None = None, lm: LM | None = None) -> Settings:
    """The settings of a method.

    Args:
        name: `rome`, `REP`, `steam_memit`, ...; or a configuration: `rome_smollm2`, `my/own.yaml`.
        lm_name: What the user calls the model, where it is not loaded yet: an alias or a hub id.
        lm: The model, where it is.

    Raises:
        KeditError: There is no such method or configuration.
    """
    if name.endswith((".yaml", ".yml")) or name in shipped_configs():
        return _read(config_path(name), name)
    parts: tuple[str, ...] = tuple(name.strip().lower().replace("r-rome", "rrome").replace("-", "_").split("_"))
    _check(name, parts)
    for config in _candidates(parts):
        settings = _shipped(config)
        if settings is not None and (settings.lm.get("name") == lm_name or (lm is not None and _fits(config, lm))):
            return settings
    head = parts[0]
    if head not in EDITORS:
        return Settings({"class_path": method_names()[head].__name__, "init_args": {}})
    inner = settings_of([EDITORS[head], *parts[1:]][-1], lm_name, lm)
    model = {"class_path": method_names()[head].__name__, "init_args": {"editor": inner.model}}
    return Settings(model, inner.lm, inner.edit, source=inner.source)


def with_options(settings: Settings, options: Mapping[str, Any]) -> Settings:
    """The settings with some of them replaced.

    Args:
        settings: As they were.
        options: As a configuration names them, `model.` left out or not: `layer`, `contexts.lengths`, `editor.v_lr`,
            `lm.dtype`, `edit.lanes`, `data.batch_size`.

    Raises:
        KeditError: A name that cannot be one.
    """
    groups = deepcopy({"model": settings.model, "lm": settings.lm, "edit": settings.edit, "data": settings.data})
    for name, value in options.items():
        parts = str(name).removeprefix("--").split(".")
        group = parts.pop(0) if parts[0] in groups else "model"
        if not parts or not all(parts):
            raise KeditError(f"{name}: expects the name of an option, as in model.layer")
        inside = groups[group]
        for part in parts[:-1]:
            inside = _below(inside, part, str(name))
        inside = inside.setdefault("init_args", {}) if "class_path" in inside else inside
        inside[parts[-1]] = value
    return Settings(groups["model"], groups["lm"], groups["edit"], groups["data"], settings.source)


def _below(inside: dict[str, Any], part: str, name: str) -> dict[str, Any]:
    inside = inside.setdefault("init_args", {}) if "class_path" in inside else inside
    below = inside.setdefault(part, {})
    if not isinstance(below, dict):
        raise KeditError(f"{name}: {part} is {shown(below, 40)} and has no options below it")
    return below


def _check(name: str, parts: Sequence[str]) -> None:
    known = method_names()
    wraps = parts[0] in known and issubclass(known[parts[0]], EditorWrapper)
    if parts[0] in known and (len(parts) == 1 or (len(parts) == 2 and wraps and parts[1] in known)):
        return
    if parts[0] in known and not wraps and len(parts) == 2 and parts[1] in known:
        raise KeditError(f"method: {parts[0]} edits by itself and takes no editor; give {parts[0]} or {parts[1]}")
    close = get_close_matches("_".join(parts), known, n=1) or get_close_matches(parts[0], known, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise KeditError(f"method: there is no method {shown(name)}{meant}\nThere are {', '.join(known)}; kedit ls methods")


def _candidates(parts: tuple[str, ...]) -> Iterator[str]:
    """Names of configurations that may be of the method, the likeliest first."""
    head = "_".join(parts)
    usual = EDITORS.get(parts[0])
    heads = [head]
    if usual is not None and parts in ((parts[0],), (parts[0], usual)):
        heads = [parts[0], f"{parts[0]}_{usual}"]
    elif head == "pac":
        heads.append("pac_counterfact")
    for slugs in SLUGS.values():
        for slug in slugs:
            yield from (f"{one}_{slug}" for one in heads)


def _fits(config: str, lm: LM) -> bool:
    return any(config.endswith(f"_{slug}") for slug in SLUGS.get(published.shape_of(lm), ()))


def _shipped(config: str) -> Settings | None:
    path = shipped_configs().get(config)
    return None if path is None else _read(path, config)


def _read(path: Path, name: str) -> Settings:
    try:
        whole = load_yaml(read_text(path))
    except yaml.YAMLError as error:
        raise KeditError(f"method: {name} is not valid YAML: {first_line(error)}") from None
    if not isinstance(whole, Mapping) or not isinstance(whole.get("model"), Mapping):
        raise KeditError(f"method: {name} has no 'model:' with a class_path, so it is no configuration of a method")
    data = (whole.get("data") or {}).get("init_args") or {}
    kept = {key: data[key] for key in ("batch_size", "queries", "joiner", "chat", "system") if key in data}
    return Settings(dict(whole["model"]), dict(whole.get("lm") or {}), dict(whole.get("edit") or {}), kept, name)
