"""The anchors of a run: one for every distinct new object, made on the unedited model and kept on disk."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kedit.covariance.store import read, write
from kedit.errors import KeditError
from kedit.forward.residual_stream import last_states
from kedit.methods.steam.config import AnchorConfig, Centre
from kedit.methods.steam.pool import Pool, normal
from kedit.methods.steam.positioning import SOURCES, Anchor, Leaks, position, recipe
from kedit.methods.steam.probe import LayerProbe, Within, probe, telling, within
from kedit.model.tokenization import encode
from kedit.request import EditRecord
from kedit.runtime.cache import cache_dir

if TYPE_CHECKING:
    from kedit.model.lm import LM

Progress = Callable[[int, int], None]

CONTEXTS = 4  # templates of the fallback `in_context`, at most
PROBED = 24  # objects that the probe looks at, at most
OBJECTS = 5  # anchors that `center: objects` needs
NEUTRAL = (
    "The next thing on the list is",
    "What I saw there was",
    "The word that fits here is",
    "They finally decided on",
    "Everybody was talking about",
    "The answer to the question is",
    "On the table there was",
    "The story is about",
    "It is usually called",
    "The first one that comes to mind is",
    "Later that day we found",
    "The letter was sent to",
    "In the end he chose",
    "The report mentions",
    "She had always wanted",
    "This is known as",
    "The best example of this is",
    "The sign on the door said",
    "Most people would say",
    "The package came from",
    "The last chapter deals with",
    "What they needed was",
    "The name in the book was",
    "Our next guest is",
)
"""Prompts of our own that ask for no object in particular; their mean state is `center: generic`."""


class AnchorBank:
    """Positions objects, each once.

    Args:
        lm: The model, unedited for as long as anchors are made.
        records: The records of the run; what they edit and what is scored for them stays out of every anchor.
        pool: Where references are looked up.
        config: How.
        contexts: Context templates of the run, for the fallback `in_context`.
        keep: Keep anchors in kedit's cache, and take them from there.
    """

    def __init__(
        self,
        lm: LM,
        records: Sequence[EditRecord],
        pool: Pool,
        config: AnchorConfig,
        contexts: Sequence[str] = ("{}",),
        keep: bool = True,
    ) -> None:
        self.lm, self.pool, self.config = lm, pool, config
        self.records = list(records)
        self.contexts = list(contexts[:CONTEXTS]) or ["{}"]
        self.leaks = Leaks.of(self.records)
        self._folder = cache_dir() / "anchors" / recipe(lm, pool, self.leaks, config) if keep else None
        self._found: dict[str, Anchor] = {}

    def fill(self, progress: Progress | None = None) -> None:
        """Positions the objects of all records."""
        for i, record in enumerate(self.records):
            self.anchor(record)
            if progress is not None:
                progress(i + 1, len(self.records))

    def anchor(self, record: EditRecord) -> Anchor:
        """The anchor of a record's new object: one for all records that get the object, unless it was told the fact."""
        name, case = _name(record), f"case {record.request.case_id}"
        if name in self._found:
            return self._found[name]
        if case not in self._found:
            found = self._cached(name) or self._position(record)
            self._found[name if found.used else case] = found
            return found
        return self._found[case]

    @property
    def positioned(self) -> int:
        """How many anchors were made or read."""
        return len(self._found)

    def counts(self) -> dict[str, int]:
        """How many of the records have their anchor from each source."""
        seen = Counter(self.anchor(record).source for record in self.records)
        return {source: seen[source] for source in SOURCES if seen[source]}

    def centre(self, kind: Centre) -> Tensor | None:
        """What `align.center` subtracts, `[n_layers, d_model]`; None for `none`.

        Raises:
            KeditError: `objects` with fewer than five anchors.
        """
        if kind == "none":
            return None
        if kind == "generic":
            return last_states(self.lm, [encode(self.lm, prompt).ids for prompt in NEUTRAL]).mean(0)
        means = [anchor.mean for anchor in self._found.values() if anchor.mean is not None]
        if len(means) < OBJECTS:
            raise KeditError(
                f"model.align.center: objects needs anchors of {OBJECTS} objects, this run has {len(means)}; "
                "edit more records, or use generic"
            )
        return torch.stack(means).mean(0)

    def with_states(self, record: EditRecord) -> Anchor:
        """The anchor of a record's new object with the states that it averages (`Anchor.hidden`), positioned anew."""
        return self._position(record, keep_hidden=True)

    def with_references(
        self, records: Sequence[EditRecord], most: int = PROBED, progress: Progress | None = None
    ) -> dict[str, Anchor]:
        """Anchors, with their states, of the objects of `records` that have two references or more.

        Args:
            records: Of the run.
            most: Objects to look at, at most; in the order of their names.
            progress: Called after every object.

        Returns:
            Name of the object -> its anchor.
        """
        by_name = {_name(record): record for record in records}
        found: dict[str, Anchor] = {}
        for i, name in enumerate(sorted(by_name), 1):
            if len(found) == most:
                break
            seen = self._found.get(name)
            if seen is None or seen.n > 1:  # one that was positioned before may be known to be of no use
                anchor = self.with_states(by_name[name])
                if anchor.n > 1 and anchor.used:
                    found[name] = anchor
            if progress is not None:
                progress(i, len(by_name))
        return found

    def telling(self, most: int = PROBED) -> list[float]:
        """How well each layer tells objects apart, by the anchor probe over some of the objects with references.

        Args:
            most: Objects to look at, at most; in the order of their names.

        Raises:
            KeditError: Fewer than two objects have two references.
        """
        anchors = self.with_references(self.records, most).values()
        return telling(probe_of(anchors), within_relations(anchors))

    def _position(self, record: EditRecord, keep_hidden: bool = False) -> Anchor:
        answer_id = record.meta.get("target_new_id")
        found = position(
            self.lm, record.request, answer_id, self.pool, self.leaks, self.config, self.contexts, keep_hidden
        )
        if self._folder is not None and found.used and not keep_hidden and found.mean is not None:
            card = found.card() | {"key": {"object": _name(record)}, "used": [[r.text, r.answer] for r in found.used]}
            write(self._path(_name(record)), {"mean": found.mean}, card)
        return found

    def _cached(self, name: str) -> Anchor | None:
        if self._folder is None or not self._path(name).is_file():
            return None
        path = self._path(name)
        tensors, card = read(path)
        try:
            if card["key"]["object"] != name:
                raise ValueError(f"it is of {card['key']['object']!r}, not of {name!r}")
            used = tuple(self.pool.find(text, answer) for text, answer in card["used"])
            names = ("n", "relations", "source", "recall", "asked", "known")
            found = Anchor(tensors["mean"], **{key: card[key] for key in names}, used=used)
        except (LookupError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise KeditError(f"{path} is damaged ({why[:200]}); delete it, it will be made again") from error
        mean = tensors["mean"]
        if mean.dtype != torch.float32 or mean.ndim != 2 or not bool(mean.isfinite().all()):
            raise KeditError(f"{path} holds no anchor; delete it, it will be made again")
        return found

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"


def probe_of(anchors: Iterable[Anchor]) -> list[LayerProbe]:
    """The anchor probe of anchors that have their states.

    Raises:
        KeditError: There are fewer than two.
    """
    hidden = [anchor.hidden for anchor in anchors if anchor.hidden is not None]
    if len(hidden) < 2:
        raise KeditError(
            f"the anchor probe needs two objects with references, this run has {len(hidden)}; "
            "give model.anchors.records or model.anchors.knowledge"
        )
    return probe(hidden)


def within_relations(anchors: Iterable[Anchor]) -> list[Within]:
    """`kedit.methods.steam.within` of anchors that have their states."""
    found = [(a.hidden, [reference.relation for reference in a.used]) for a in anchors if a.hidden is not None]
    return within([hidden for hidden, _ in found], [relations for _, relations in found])


def _name(record: EditRecord) -> str:
    answer_id, name = record.meta.get("target_new_id"), normal(record.request.target_new)
    return name if answer_id is None else f"{answer_id} {name}"
