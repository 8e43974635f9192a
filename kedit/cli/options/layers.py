"""Options given in layers: a configuration, another one, the command line; what a change of a class leaves of them.

jsonargparse keeps the settings that the old class and the new one have in common. For a method that is right (the
same model, layer and learning rate), and said in the log. For data it is not: `limit: 30` and `known: true` were
chosen for facts that are not edited any more, and would drop those that are.
"""

from __future__ import annotations

import logging
from argparse import Action
from collections.abc import Sequence
from typing import Any, cast

from jsonargparse import ArgumentParser, Namespace

from kedit.errors import shown
from kedit.runtime.option_groups import class_of

log = logging.getLogger(__name__)

DATA, MODEL = "data", "model"


def begin_anew(parser: ArgumentParser) -> None:
    """From now on a class for `data` that is not the one of before begins without that one's settings.

    Args:
        parser: With `--data` and `--config`, perhaps `--model`, added.
    """
    for action in parser._actions:
        if action.dest in ("config", DATA, MODEL):
            cast(Any, action).__class__ = type("Anew", (_Anew, type(action)), {})


def class_first(words: Sequence[str]) -> list[str]:
    """Words of a command line with `--data CLASS` before `--data.limit 3`: the settings there are for that class.

    Args:
        words: What stands after `kedit fit`. Those on either side of a `--config` stay there.
    """
    done: list[str] = []
    classes: list[str] = []
    others: list[str] = []
    left = list(words)
    while left:
        group = [left.pop(0)]
        name, equals, _ = group[0].partition("=")
        if name.startswith("-") and not equals and left and not left[0].startswith("-"):
            group.append(left.pop(0))
        if name in ("-c", "--config"):
            done += [*classes, *others, *group]
            classes, others = [], []
        elif name in (f"--{DATA}", f"--{DATA}.class_path"):
            classes += group
        else:
            others += group
    return [*done, *classes, *others]


class _Anew(Action):
    """Beside an action of jsonargparse: what it gives is tried, and given to a clean slate where the class changed."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) < 3:  # jsonargparse makes actions by calling others
            return super().__call__(*args, **kwargs)
        parser, given, *more = args
        tried = given.clone()
        super().__call__(parser, tried, *more, **kwargs)
        if _changed(given.get(MODEL), tried.get(MODEL)):
            _say(MODEL, given, tried, "whose settings of the same name stay")
        if not _changed(given.get(DATA), tried.get(DATA)):
            given.__dict__.update(tried.__dict__)
            return None
        _say(DATA, given, tried, "whose settings no longer count")
        given[DATA] = None
        return super().__call__(parser, given, *more, **kwargs)


def _changed(old: Any, new: Any) -> bool:
    return _has_class(old) and _has_class(new) and class_of(old) is not class_of(new)


def _has_class(spec: Any) -> bool:
    return isinstance(spec, Namespace) and isinstance(spec.get("class_path"), str)


def _say(option: str, given: Namespace, tried: Namespace, what: str) -> None:
    """One line on a change of the class: which, for which, and what becomes of the old settings."""
    old, new = given[option], tried[option]
    settings = (old.get("init_args") or Namespace()).as_dict()
    if option == MODEL:
        kept = (new.get("init_args") or Namespace()).as_dict()
        settings = {name: value for name, value in settings.items() if name in kept}
    told = ", ".join(f"{name} {_brief(value)}" for name, value in settings.items() if value not in (None, False, 0))
    names = [str(spec.class_path).rpartition(".")[2] for spec in (new, old)]
    log.info("%s: %s takes the place of %s, %s: %s", option, *names, what, told or "none")


def _brief(value: Any) -> str:
    return "{...}" if isinstance(value, dict) else shown(value, 40)
