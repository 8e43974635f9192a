"""The method that edits, made of its settings: the option parser of `kedit fit` has the same last word."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from transformers import PreTrainedModel

from kedit.data.robust_queries import QueryConfig
from kedit.editing.settings import Settings
from kedit.errors import KeditError, shown
from kedit.methods import EditingModule
from kedit.methods.base.edit_config import EditConfig, Regime
from kedit.model.lm import LMConfig
from kedit.runtime.option_groups import check_chosen, editors, options_of
from kedit.runtime.option_values import check_values

_KEY = re.compile(r'Parser key "([\w.]+)"')
_UNKNOWN = re.compile(r"[Oo]ption '([\w.]+)'")
_VALUE = re.compile(r"(?:Got value|Given value): (.+)")
_NO_CLASS = re.compile(r"(?:Expected a dot import path string|Import path|No module named)[: ']+([\w.]+)")


def module_of(settings: Settings) -> EditingModule:
    """The method that the settings describe, configured.

    Raises:
        KeditError: An option that it does not have, or a value that the option does not take; names the option.
    """
    check_values(settings.model, "model")
    parsed = _parsed({"model": settings.model, "edit": settings.edit})
    check_chosen("model", parsed.model)
    for name, chosen in editors(parsed.model):
        check_chosen(name, chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parser, about its own next version
        made: Any = _parser().instantiate_classes(parsed)
    module: EditingModule = made.model
    return module.configure(edit=made.edit)


def lm_config(settings: Settings, name: str, **given: Any) -> LMConfig:
    """What is loaded where the user names a model: as the configuration says, where it is of that model.

    Args:
        settings: Of the method.
        name: Alias, folder or hub id.
        given: Options that the user chose; None leaves one as it is.
    """
    chosen = {key: value for key, value in given.items() if value is not None}
    own = settings.lm if settings.lm.get("name") == name else {}
    check_values({"lm": {"name": name, **chosen}})
    return LMConfig(**_parsed({"lm": {**own, "name": name, **chosen}}).lm.as_dict())


def settings_card(settings: Settings) -> dict[str, Any]:
    """Every option of the method with its value, JSON-able, and the configuration that they are from."""
    parsed = _parsed({"model": settings.model})
    return {"config": settings.source, **parsed.model.as_dict()}


def query_config(settings: Settings) -> QueryConfig | None:
    """The variants of requests that the method trains on, where the configuration asks for any."""
    given = settings.data.get("queries")
    if given is None:
        return None
    try:
        return QueryConfig(**given)
    except TypeError as error:
        raise KeditError(f"data.queries: {error}") from None


def own_copy(module: EditingModule) -> EditingModule:
    """A copy of the method that a user made, so that theirs can be used again.

    Raises:
        KeditError: It holds a model, as after a run.
    """
    if any(isinstance(part, PreTrainedModel) for part in module.modules()):
        name = type(module).__name__
        raise KeditError(f"method: this {name} has edited before and holds what came of it; make a new {name}(...)")
    return deepcopy(module)


def regime_for(module: EditingModule, count: int, asked: str | None, configured: str | None) -> Regime:
    """How so many requests are edited, so that all are kept.

    Args:
        module: The method.
        count: Number of requests.
        asked: What the user asks for.
        configured: What the configuration says.

    Raises:
        KeditError: The method does not know the regime, or it would keep one edit alone.
    """
    name = type(module).__name__
    if asked is not None and asked not in module.regimes:
        raise KeditError(f"regime: {name} knows {', '.join(module.regimes)}, not {shown(asked)}")
    chosen = asked or configured
    if count == 1:
        return chosen or module.regime  # type: ignore[return-value]
    if chosen == "single" and asked is not None:
        raise KeditError(
            f"regime: single edits each of the {count} requests by itself, and no model would hold them all; "
            "give batch or sequential, or one request at a time"
        )
    if chosen in ("batch", "sequential"):
        return chosen  # type: ignore[return-value]
    keeping: list[Regime] = [regime for regime in ("batch", "sequential") if regime in module.regimes]
    if not keeping:
        raise KeditError(f"requests: {name} edits one fact at a time; give one request")
    return keeping[0]


def configure(module: EditingModule, regime: Regime, lanes: int | None = None, seed: int | None = None) -> None:
    """Says how the method edits; what is None stays as it is."""
    own = module.editor
    now = (own.lanes if lanes is None else lanes, module.seed if seed is None else seed)
    of_now = EditConfig(regime, *now, own.recompute, own.ends_targets)
    check_values(asdict(of_now), "edit")
    module.configure(edit=of_now)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LMConfig, "lm")
    parser.add_class_arguments(EditConfig, "edit")
    parser.add_subclass_arguments(EditingModule, "model")
    return parser


def _parsed(values: Mapping[str, Any]) -> Namespace:
    try:
        return _parser().parse_object(deepcopy(dict(values)))
    except ArgumentError as error:
        raise KeditError(_brief(str(error))) from None


def _brief(message: str) -> str:
    """The parser's reason in one line: the innermost option that it names, and the value."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    keys = [key for line in lines for key in _KEY.findall(line)]
    option = ".".join(dict.fromkeys(keys)) or "options"
    for line in lines:
        if found := _UNKNOWN.search(line):
            group = re.search(r"Group '([\w.]+)'", line)
            name = ".".join([option, *([group[1]] if group else []), found[1]])
            return f"{name}: there is no such option{_meant(found[1], message)}"
        if found := _NO_CLASS.search(line):
            return f"{option}: there is no class {found[1]} for it; kedit ls methods lists them"
    wanted = dict.fromkeys(
        kind for line in lines for kind in re.findall(r"Expected an? <class '(?:\w+\.)*(\w+)'>", line)
    )
    value = next((found[1] for line in lines if (found := _VALUE.search(line))), "")
    kinds = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    said = [kinds[kind] for kind in wanted if kind in kinds]
    expected = f"expects {' or '.join(said)}, not" if said else "does not take"
    return f"{option}: {expected} {shown(value)}"


def _meant(name: str, message: str) -> str:
    """The option that was probably meant, of the innermost class that the parser names."""
    classes = re.findall(r"given class_path '([\w.]+)'", message)
    known = options_of(Namespace(class_path=classes[-1])) if classes else []
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}" if known else ""
