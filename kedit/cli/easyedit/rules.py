"""What becomes of one key of a hyperparameter file, and how its value is read.

A rule is data; the functions here turn a value of the file into one of kedit's. `Unfit` says that a value has no
counterpart, which is told in the configuration; a value that nobody means is a `KeditError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kedit.errors import KeditError, shown
from kedit.model.families import FAMILIES

Hparams = Mapping[str, Any]
"""All keys of the file."""


class Unfit(Exception):
    """A value that kedit has no counterpart of; the message says what kedit does in its place."""


def _same(value: Any, _: Hparams) -> Any:
    return value


@dataclass(frozen=True)
class Rule:
    """What becomes of a key.

    Args:
        to: Option of kedit, with its group, e.g. `"model.layer"`; ending in `*` where `convert` gives several options
            below; None: there is none.
        convert: Value of the file, and all keys of it -> kedit's value. Raises Unfit.
        note: What its meaning here differs in; where there is no option: what kedit does in its place.
        only: Where there is no option: the values with which nothing is lost; None: any; empty: none.
        secret: Its value is not written.
    """

    to: str | None = None
    convert: Callable[[Any, Hparams], Any] = _same
    note: str = ""
    only: tuple[Any, ...] | None = None
    secret: bool = False


def whole(value: Any, _: Hparams) -> int:
    """A whole number."""
    found = number(value, _)
    if found != int(found):
        raise KeditError(f"expects a whole number, not {shown(value)}")
    return int(found)


def number(value: Any, _: Hparams) -> float:
    """A number, also one that YAML takes for a text (`5e-1`)."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise KeditError(f"expects a number, not {shown(value)}")


def yes_or_no(value: Any, _: Hparams) -> bool:
    """A bool."""
    if not isinstance(value, bool):
        raise KeditError(f"expects true or false, not {shown(value)}")
    return value


def text(value: Any, _: Hparams) -> str:
    """A text."""
    if not isinstance(value, str) or not value:
        raise KeditError(f"expects a text, not {shown(value)}")
    return value


def texts(value: Any, hparams: Hparams) -> list[str]:
    """A list of texts."""
    if not isinstance(value, list) or not value:
        raise KeditError(f"expects a list of texts, not {shown(value)}")
    return [text(one, hparams) for one in value]


def layers(value: Any, hparams: Hparams) -> list[int]:
    """A list of layers."""
    if not isinstance(value, list) or not value:
        raise KeditError(f"expects a list of layers, such as [5], not {shown(value)}")
    return sorted(whole(one, hparams) for one in value)


def layers_or_all(value: Any, hparams: Hparams) -> list[int] | None:
    """A list of layers; an empty one is all of them."""
    return None if value in ([], None) else layers(value, hparams)


def one_layer(value: Any, hparams: Hparams) -> int:
    """The layer of a list of one."""
    found = layers(value, hparams)
    if len(found) > 1:
        raise Unfit("it edits one layer: set model.layer (null: the one that is published for the model)")
    return found[0]


def bound(value: Any, hparams: Hparams) -> float | None:
    """A bound; false is none."""
    return None if value in (False, None) else number(value, hparams)


def one_of(values: Mapping[Any, Any], instead: str) -> Callable[[Any, Hparams], Any]:
    """A conversion by a table.

    Args:
        values: The file's value -> kedit's.
        instead: What kedit does with any other value.
    """

    def convert(value: Any, _: Hparams) -> Any:
        if isinstance(value, list | dict) or value not in values:
            raise Unfit(instead)
        return values[value]

    return convert


def pairs(value: Any, hparams: Hparams) -> list[list[int]]:
    """Pairs of whole numbers: `[[5, 10], [10, 10]]`."""
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise KeditError(f"expects pairs such as [[5, 10], [10, 10]], not {shown(value)}")
    return [[whole(one, hparams) for one in pair] for pair in value]


def folder(value: Any, hparams: Hparams) -> str:
    """A local folder; a name on a hub is none."""
    if not text(value, hparams).startswith((".", "/", "~")):
        raise Unfit("it takes a local folder (model.encoder), or chooses by words (null)")
    return value


ROLES: Mapping[str, str] = {family.mlp_out: "down" for family in FAMILIES.values()} | {
    name: "up" if name == family.mlp_in[-1] else "gate" for family in FAMILIES.values() for name in family.mlp_in
}
"""Path of a feed-forward map in its layer -> its role."""

_PLACE = re.compile(r".*?(?:\[|\.)(\d+)\]?\.(.+?)(?:\.weight)?")


def check_down(value: Any, hparams: Hparams) -> None:
    """A template of the edited map: kedit finds the feed-forward output map by itself.

    Raises:
        Unfit: Another map is named.
    """
    if ROLES.get(_below(text(value, hparams))) != "down":
        raise Unfit("it edits the output map of the feed-forward block, and that alone")


def matrices(value: Any, hparams: Hparams) -> list[str]:
    """A template of trained maps, e.g. `model.layers.{}.mlp.down_proj.weight`: their role, else their path."""
    below = _below(text(value, hparams))
    if not below:
        return ["layer"]
    return ["mlp_out" if ROLES.get(below) == "down" else below]


def grace_place(value: Any, hparams: Hparams) -> dict[str, Any]:
    """Layer and map of GRACE's one path."""
    paths = texts(value, hparams)
    if len(paths) > 1:
        raise Unfit("it has a codebook beside one map: set model.layer and model.module")
    layer, role = _place(paths[0])
    if role == "gate":
        raise Unfit("its codebook stands beside the down or the up map: set model.layer and model.module")
    return {"layer": layer, "module": role}


def ultraedit_places(value: Any, hparams: Hparams) -> dict[str, list[int]]:
    """Layers of UltraEdit's matrices by their roles."""
    found: dict[str, list[int]] = {"gate": [], "up": [], "down": []}
    for path in texts(value, hparams):
        layer, role = _place(path)
        found[role].append(layer)
    return {f"{role}_layers": sorted(set(places)) for role, places in found.items()}


def lora_rank(value: Any, hparams: Hparams) -> int:
    """The rank with which peft trains: its AdaLoRA does not read `r`."""
    return 12 if hparams.get("lora_type", "adalora") == "adalora" else whole(value, hparams)


def enough_tokens(value: Any, hparams: Hparams) -> int:
    """Tokens of the statistics: the file counts documents."""
    whole(value, hparams)
    return 100_000


def _below(template: str) -> str:
    """What stands below the layer in `model.layers.{}.mlp.down_proj.weight`."""
    _, braces, below = template.partition("{}")
    if not braces:
        raise KeditError(f"expects a path with {{}} for the layer, not {shown(template)}")
    return below.removeprefix(".").removesuffix(".weight")


def _place(path: str) -> tuple[int, str]:
    """Layer and role of `model.layers[27].mlp.down_proj.weight`."""
    found = _PLACE.fullmatch(path)
    role = ROLES.get(found[2]) if found else None
    if found is None or role is None:
        raise Unfit(f"it edits maps of feed-forward blocks; {shown(path)} is none that it knows")
    return int(found[1]), role
