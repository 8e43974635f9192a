"""Traces of facts on the disk, one file each: what was traced once, before a kill or for another figure, is read.

Beside statistics and anchors in kedit's cache, under a key of everything that a trace depends on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kedit.causal_tracing.facts import Fact
from kedit.causal_tracing.runs import Part
from kedit.runtime import checksum
from kedit.runtime.cache import cache_dir
from kedit.runtime.files import make_folder, write_text

if TYPE_CHECKING:
    from kedit.causal_tracing.tracing import FactTrace
    from kedit.model.lm import LM

log = logging.getLogger(__name__)

FORMAT = 1


class StoredTraces:
    """The traces of one model with one setting.

    Args:
        lm: The model, unedited.
        how: What a trace depends on besides the model and the fact (noise, window, ...); JSON-able.
        parts: What is restored.
    """

    def __init__(self, lm: LM, how: Mapping[str, Any], parts: Sequence[Part]) -> None:
        model = {"model": lm.fingerprint, "dtype": str(lm.dtype), "n_layers": lm.arch.n_layers}
        self._how = {"format": FORMAT, **model, **how, "parts": list(parts)}
        self._parts, self._n_layers = parts, lm.arch.n_layers
        self.folder = cache_dir() / "traces" / lm.fingerprint

    def read(self, fact: Fact, tokens: range) -> FactTrace | None:
        """The trace of a fact; None where there is none, or one that is damaged."""
        from kedit.causal_tracing.tracing import FactTrace

        path = self._path(fact, tokens)
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
            stated = card.pop("checksum")
            if checksum.of_json(card) != stated:
                raise ValueError("its checksum is wrong")
            restored: dict[Part, torch.Tensor] = {
                part: torch.tensor(card["restored"][part], dtype=torch.float64) for part in self._parts
            }
            if any(found.shape != (len(tokens), self._n_layers) for found in restored.values()):
                raise ValueError("it has other tokens or layers")
            return FactTrace(fact, float(card["clean"]), float(card["corrupted"]), restored, tokens)
        except FileNotFoundError:
            return None
        except checksum.UNREADABLE as error:
            log.warning("%s is damaged (%s): the fact is traced anew", path, checksum.first_line(error))
            return None

    def write(self, found: FactTrace) -> None:
        """Keeps a trace.

        Raises:
            CannotWrite: The cache cannot be written.
        """
        path = self._path(found.fact, found.tokens)
        make_folder(path.parent, "KEDIT_CACHE")
        restored = {part: own.tolist() for part, own in found.restored.items()}
        card = {"clean": found.clean, "corrupted": found.corrupted, "restored": restored}
        write_text(path, json.dumps(card | {"checksum": checksum.of_json(card)}))

    def _path(self, fact: Fact, tokens: range) -> Path:
        own = {
            "case_id": fact.case_id,  # of which the noise is made
            "ids": list(fact.ids),
            "subject": [fact.first, fact.last],
            "answer": fact.answer,
            "tokens": [tokens.start, tokens.stop],
        }
        text = json.dumps(self._how | own, sort_keys=True, ensure_ascii=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
