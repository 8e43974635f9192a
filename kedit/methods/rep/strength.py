"""How much of the edit a variant should get: chosen for every edit by asking the edited model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from kedit.delta.delta import Delta
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.pathways import Pathways
from kedit.evaluation.score import EvalConfig, score
from kedit.model.lm import LM
from kedit.request import EditRecord, Probe

KStars = Mapping[str, Sequence[Tensor]]  # module path -> k* of each pathway there


def stronger(delta: Delta, k_stars: KStars, edit_strength: float) -> Delta:
    """`delta` whose pathways deliver `edit_strength` instead of 1: their constant part gains (edit_strength - 1) k*."""
    pathways: dict[str, Pathways] = {}
    for path, own in delta.of_kind(Pathways).items():
        moved = []
        for pathway, k_star in zip(own.adapters, k_stars[path], strict=True):
            more = (edit_strength - 1) * k_star
            moved.append(replace(pathway, offset=more if pathway.offset is None else pathway.offset + more))
        pathways[path] = Pathways(tuple(moved))
    return delta.with_changes(pathways)


def choose_edit_strength(
    lm: LM,
    deltas: Sequence[Delta],
    k_stars: Sequence[KStars],
    records: Sequence[Sequence[EditRecord]],
    choices: Sequence[float],
    most: int,
) -> list[float]:
    """The least of `choices` under which most of an edit's training variants are answered with the new target.

    Asked are the request itself, which is never given up for its variants, and at most `most` training variants,
    half of them other names and half scrambled ones; what counts is teacher-forced exact match. Variants that test
    are never looked at.

    Args:
        lm: The model.
        deltas: What to strengthen, one choice each.
        k_stars: k* of their pathways.
        records: The records of each delta, with their variants.
        choices: Candidates, ascending.
        most: Variants of a record that are asked.

    Returns:
        One choice per delta.
    """
    lanes = [
        stronger(delta, own, edit_strength)
        for delta, own in zip(deltas, k_stars, strict=True)
        for edit_strength in choices
    ]
    probes, where, worth = [], [], []
    for i, own in enumerate(records):
        asked = [_probes(record, most) for record in own]
        many = sum(len(of_record) for of_record in asked)
        for c in range(len(choices)):
            for of_record in asked:
                probes += of_record
                where += [i * len(choices) + c] * len(of_record)
                worth += [many, *[1] * (len(of_record) - 1)]  # the request outweighs every variant
    hits = [0] * len(lanes)
    bank = BatchedDeltas(lm.model, lanes)
    for lane, weight, found in zip(where, worth, score(lm, probes, where, bank, EvalConfig(generate=[])), strict=True):
        hits[lane] += weight * found.exact
    best = []
    for i in range(len(deltas)):
        own = hits[i * len(choices) : (i + 1) * len(choices)]
        best.append(choices[own.index(max(own))])
    return best


def _probes(record: EditRecord, most: int) -> list[Probe]:
    request, variants = record.request, record.variants
    names = [request.named("REP")]
    if variants is not None:
        half = most // 2
        names += [*variants.paraphrase_train[: most - half], *variants.shuffle_train[:half]]
    return [Probe("rewrite", request.about(name), request.target_new, joiner=request.joiner) for name in names]
