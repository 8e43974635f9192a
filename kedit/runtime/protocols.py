"""Named protocols: regime x when x scorers x what the data must have, as small files that come with kedit.

A file says which options a run of that name has (`settings`), what its data must have (`needs`), which of the numbers
are the protocol's (`reads`) and what it leaves to the user (`open`). docs/protocols.md describes each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from kedit.errors import KeditError, shown
from kedit.runtime.shipped import shipped_protocols
from kedit.runtime.yaml_text import load_yaml, read_text


@dataclass(frozen=True)
class Needs:
    """What the data of a protocol must have.

    Attributes:
        kinds: Kinds of probe; at least one record has each.
        rivals: Kinds whose probes have a rival, the answer that theirs competes with.
        subjects: Every request names its subject.
        one_batch: All records are one edit batch.
    """

    kinds: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    subjects: bool = False
    one_batch: bool = False


@dataclass(frozen=True)
class Protocol:
    """A named protocol.

    Attributes:
        name: Its name.
        about: What it is, in a sentence.
        paper: Where it is from.
        settings: Option as the command line writes it -> its value.
        needs: What the data must have.
        reads: Which numbers are the protocol's.
        open: What is left to the user.
    """

    name: str
    about: str
    paper: str
    settings: Mapping[str, Any]
    needs: Needs
    reads: str
    open: str


def protocols() -> dict[str, Protocol]:
    """Name -> protocol, sorted by name."""
    return {name: protocol(name) for name in shipped_protocols()}


def protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        KeditError: There is none; says which there are.
    """
    files = shipped_protocols()
    if name not in files:
        close = get_close_matches(name, files, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(files)}"
        raise KeditError(f"protocol: there is none that is called {shown(name)}; {hint}")
    text = read_text(files[name])
    content = load_yaml(text)
    needs: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in content["needs"].items()
    }
    return Protocol(
        name=name,
        about=text.partition("\n")[0].removeprefix("#").strip(),
        paper=content["paper"],
        settings=content["settings"],
        needs=Needs(**needs),
        reads=content["reads"],
        open=content["open"],
    )
