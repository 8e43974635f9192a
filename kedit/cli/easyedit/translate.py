"""A hyperparameter file, key by key: options of kedit, and what is to be told of the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from kedit.cli.easyedit.rules import Rule, Unfit
from kedit.cli.easyedit.tables import COMMON, METHODS, NAMES, Method
from kedit.errors import KeditError, shown

LONG = 80
SECRET = re.compile(r"key|secret|password|credential", re.IGNORECASE)


@dataclass(frozen=True)
class Said:
    """A line about a key: what the file says, and what is to know of it."""

    key: str
    value: str
    note: str = ""


@dataclass
class Translation:
    """What a file becomes.

    Attributes:
        method: The method.
        options: Option of kedit, in full -> its value.
        origin: Option of kedit -> the key that it comes from, with its value, where its name is another.
        differs: Keys that have another meaning here, or a value that kedit has nothing for.
        dropped: Keys without a counterpart, with which nothing is lost.
        unknown: Keys that EasyEdit's files of this method do not have.
    """

    method: Method
    options: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    differs: list[Said] = field(default_factory=list)
    dropped: list[Said] = field(default_factory=list)
    unknown: list[Said] = field(default_factory=list)


def method_of(hparams: Any, given: str | None = None) -> Method:
    """The method that a file is of.

    Args:
        hparams: What the file holds.
        given: A method's name for a file without `alg_name`.

    Raises:
        KeditError: It is no hyperparameter file, or one of a method that kedit does not have.
    """
    if not isinstance(hparams, Mapping) or not all(isinstance(key, str) for key in hparams):
        raise KeditError("no hyperparameters of EasyEdit: it is no mapping of names to values")
    if isinstance(hparams.get("model"), Mapping) and "class_path" in hparams["model"]:
        raise KeditError("this is a configuration of kedit already: kedit fit --config runs it")
    name = given or hparams.get("alg_name") or hparams.get("alg")
    if not isinstance(name, str):
        raise KeditError(
            "no hyperparameters of EasyEdit: there is no alg_name in it\n"
            "Files of the ROME, MEMIT and LocFT repositories have none: give --method ROME"
        )
    plain = re.sub(r"[-_ ]", "", name.lower())
    method = METHODS.get(NAMES.get(plain, plain))
    if method is None:
        known = ", ".join(one.name for one in METHODS.values())
        raise KeditError(f"{'method' if given else 'alg_name'}: {shown(name)} is no method of kedit; it has {known}")
    return method


def translate(hparams: Mapping[str, Any], method: Method) -> Translation:
    """Every key of a file.

    Raises:
        KeditError: A value that the method itself could not use; names the key.
    """
    done = Translation(method)
    given = dict(method.absent) | dict(hparams)
    for key, value in given.items():
        rule = method.keys.get(key) or COMMON.get(key)
        if rule is None:
            done.unknown.append(_said(key, value, ""))
            continue
        try:
            _one(done, key, value, rule, given)
        except KeditError as error:
            raise KeditError(f"{key}: {error}") from None
    for key, note in method.without.items():
        if key not in given:
            done.differs.append(Said(key, "not given", note))
    if "lm.name" not in done.options:
        done.differs.append(Said("model_name", "not given", "set lm.name; it is kedit's small model now"))
    return done


def _one(done: Translation, key: str, value: Any, rule: Rule, given: Mapping[str, Any]) -> None:
    try:
        converted = rule.convert(value, given)
    except Unfit as why:
        done.differs.append(_said(key, value, f"not carried over: {why}"))
        return
    if rule.to is None:
        lost = rule.only is not None and value not in rule.only
        (done.differs if lost else done.dropped).append(_said(key, value, rule.note, rule.secret))
        return
    base = rule.to.removesuffix("*")
    found = {f"{base}{name}": one for name, one in converted.items()} if rule.to.endswith("*") else {rule.to: converted}
    done.options |= found
    said = _said(key, value, f"{', '.join(found)}: {rule.note}")
    was = f"{said.key}: {said.value}" if len(found) == 1 else said.key
    done.origin |= {name: was for name in found if name.rpartition(".")[2] != key}
    if rule.note:
        done.differs.append(said)


def _said(key: str, value: Any, note: str, secret: bool = False) -> Said:
    hidden = secret or SECRET.search(key) is not None
    return Said(shown(key, 60)[1:-1], "..." if hidden else _brief(value), note)


def _brief(value: Any) -> str:
    """A value as YAML on one line, or what fits of it."""
    if isinstance(value, list | dict):
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
        return text if len(text) <= LONG else f"{text[: LONG - 4]} ..."
    words = {"True": "true", "False": "false", "None": "null"}
    return words[str(value)] if value is None or isinstance(value, bool) else shown(value, LONG)
