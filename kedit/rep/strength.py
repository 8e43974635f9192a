"""How much of the edit a variant should get: chosen for every edit by asking the edited model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from kedit.delta import Delta
from kedit.evaluate import EvalConfig, score
from kedit.lanes import LaneBank
from kedit.lm import LM
from kedit.pathway import Pathway
from kedit.requests import EditRecord, Probe

Anchors = Mapping[str, Sequence[Tensor]]  # module path -> k* of each pathway there


def stronger(delta: Delta, anchors: Anchors, reach: float) -> Delta:
    """`delta` whose pathways deliver `reach` instead of 1: their constant part gains (reach - 1) k*."""
    pathways: dict[str, tuple[Pathway, ...]] = {}
    for path, own in delta.pathways.items():
        moved = []
        for pathway, anchor in zip(own, anchors[path], strict=True):
            more = (reach - 1) * anchor
            moved.append(replace(pathway, offset=more if pathway.offset is None else pathway.offset + more))
        pathways[path] = tuple(moved)
    return Delta(delta.changes, pathways)


def choose_reach(
    lm: LM,
    deltas: Sequence[Delta],
    anchors: Sequence[Anchors],
    records: Sequence[Sequence[EditRecord]],
    choices: Sequence[float],
    most: int,
) -> list[float]:
    """The least of `choices` under which most of an edit's training variants are answered with the new target.

    Teacher-forced exact match of the request itself and of at most `most` of its training variants, half of them
    other names and half scrambled ones. Variants that test are never looked at.

    Args:
        lm: The model.
        deltas: What to strengthen, one choice each.
        anchors: k* of their pathways.
        records: The records of each delta, with their variants.
        choices: Candidates, ascending.
        most: Variants of a record that are asked.

    Returns:
        One choice per delta.
    """
    lanes = [stronger(delta, own, reach) for delta, own in zip(deltas, anchors, strict=True) for reach in choices]
    asked = [[probe for record in own for probe in _probes(record, most)] for own in records]
    probes, where = [], []
    for i, own in enumerate(asked):
        for c in range(len(choices)):
            probes += own
            where += [i * len(choices) + c] * len(own)
    hits = [0] * len(lanes)
    for lane, found in zip(
        where, score(lm, probes, where, LaneBank(lm.model, lanes), EvalConfig(generate=[])), strict=True
    ):
        hits[lane] += found.exact
    best = []
    for i in range(len(deltas)):
        own = hits[i * len(choices) : (i + 1) * len(choices)]
        best.append(choices[own.index(max(own))])
    return best


def _probes(record: EditRecord, most: int) -> list[Probe]:
    request, variants = record.request, record.variants
    names = [request.subject]
    if variants is not None:
        half = most // 2
        names += [*variants.paraphrase_train[: most - half], *variants.shuffle_train[:half]]
    return [Probe("rewrite", request.prompt.replace("{}", name).strip(), request.target_new) for name in names]
