"""`layers: auto`: the layers that a method edits in this model, from where its MLPs recall facts that it knows.

One layer is the peak of the MLPs' average indirect effect at the subject's last token, as ROME edits a layer at the
centre of the causal effect (Meng et al. 2022, sections 2 and 3), without the windows that hold layer 0
(`kedit.causal_tracing.peak.first_inner`). Several are as many as the method has in other models,
and end at the peak, as MEMIT spreads an edit over the critical layers up to the last of them (Meng et al. 2023,
section 4). The facts are of the train split of Facts, which ships with kedit: never those that a run reports.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from kedit.causal_tracing.facts import facts_of
from kedit.causal_tracing.peak import Peak, first_inner, peak_of
from kedit.causal_tracing.tracing import TraceConfig, trace, window_of
from kedit.data.choosing import enough_of
from kedit.data.readers.facts import read_facts
from kedit.errors import KeditError
from kedit.evaluation.score import known_records
from kedit.model.tokenization import TooLong
from kedit.request import EditRecord, fingerprint_of
from kedit.runtime import distributed
from kedit.runtime.progress import stage

if TYPE_CHECKING:
    from kedit.model.lm import LM

log = logging.getLogger(__name__)

FACTS = 32  # that are traced
LEAST = 8  # with fewer, a mean says little
SETTINGS = TraceConfig(samples=5)


@dataclass(frozen=True)
class Chosen:
    """The layers that a trace names.

    Attributes:
        layers: They, ascending.
        peak: Of the MLPs at the subject's last token.
        card: How they were chosen, for a run's description (JSON-able).
    """

    layers: list[int]
    peak: Peak
    card: dict[str, Any]


def chosen_layers(lm: LM, count: int, option: str, without: Collection[str] = ()) -> Chosen:
    """Trace facts that the model knows, or read their traces from the cache, and choose layers.

    All processes of a run call it; the first one traces.

    Args:
        lm: The model, unedited, as it is asked.
        count: How many layers the method edits in other models; 1 for one that edits a single layer.
        option: Its full name, for messages, e.g. `"model.layers"`.
        without: Prompts, subject filled in, that are not traced: those of the run.

    Raises:
        KeditError: The model knows too few facts, or its MLPs give nothing back.
    """
    records = known_facts(lm, option, without)
    effects = distributed.from_first(lambda: _effects(lm, records))
    window = window_of(SETTINGS, lm.arch.n_layers)
    first = first_inner(lm.arch.n_layers, window)
    peak = peak_of(effects, first)
    if peak.effect <= 0:
        raise KeditError(
            f"{option}: auto finds no layer of {lm.name} whose MLPs recall the subject of a fact; name the layers"
        )
    layers = list(range(max(0, peak.layer - count + 1), peak.layer + 1))
    log.info(
        "%s: auto takes %s: the MLPs' effect at the subject's last token is greatest in layer %d (%.1f points; in "
        "95 %% of samples of the %d facts in %s)",
        option, layers if count > 1 else layers[0], peak.layer, 100 * peak.effect, len(records), peak.between,
    )  # fmt: skip
    card = {
        "by": "causal tracing",
        "peak": peak.layer,
        "facts": len(records),
        "facts_fingerprint": fingerprint_of(records),
        "noise": SETTINGS.noise,
        "samples": SETTINGS.samples,
        "window": window,
        "first": first,
        "seed": SETTINGS.seed,
    }
    return Chosen(layers, peak, card)


def known_facts(lm: LM, option: str, without: Collection[str] = ()) -> list[EditRecord]:
    """Facts of the train split that the model knows, one relation after another, `FACTS` at most.

    Raises:
        KeditError: There are fewer than `LEAST`.
    """
    relations: dict[str | None, list[EditRecord]] = {}
    for record in read_facts("train"):
        if record.request.text not in without:
            relations.setdefault(record.request.relation, []).append(record)
    rounds = zip_longest(*relations.values())
    pool = [record for each in rounds for record in each if record is not None]

    try:
        found, _ = enough_of(pool, FACTS, lambda records: known_records(lm, records))
    except TooLong:
        found = []
    if len(found) < LEAST:
        raise KeditError(
            f"{option}: auto traces facts that a model knows, and {lm.name} knows {len(found)} of the {len(pool)} "
            f"there are (at least {LEAST} are needed). Name layers, or leave it null; kedit trace takes your own facts"
        )
    return found[:FACTS]


def _effects(lm: LM, records: Sequence[EditRecord]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The MLPs' indirect effect at the subject's last token, `[n_facts, n_layers]`."""
    facts = facts_of(lm, records, "layers: auto")
    with stage("tracing facts for layers: auto") as progress:
        traces = trace(lm, facts, SETTINGS, ["mlp"], True, progress, keep=True)
    return np.stack([found.effect("mlp")[0].numpy() for found in traces])
