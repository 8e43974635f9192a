"""How much of an edit reaches a key: r(k) = k.u / k*.u for every query of a record, and the bounds that r must keep.

An edit changes its layer's output at a key by r(k) times what it changes at k* (specs/rep.md 1), so a form of the
subject expects r near 1 and everything else expects 0. Tables and figures of these values are in
`kedit.analysis.similarity_report` and `kedit.analysis.similarity_figure`; what they mean: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.pathway import PathwayRouter
from kedit.delta.pathways import Pathways
from kedit.evaluation.score import EvalConfig, score
from kedit.methods.rep.keys import read_keys
from kedit.model.lm import LM
from kedit.model.tokenization import encode, encode_subject
from kedit.request import EditRecord, EditRequest, Probe
from kedit.text.prompts import escaped

EQUIVALENT = ("paraphrase_id", "paraphrase_ood", "shuffle_id", "shuffle_ood", "long_context")
"""Kinds of query that ask for the edited fact."""

KINDS = (*EQUIVALENT, "neighborhood", "random")
SCALES = tuple(s / 10 for s in range(13))
"""Shares of an edit at which the bounds are looked for."""

OTHERS = 8  # other records whose bare prompt is the kind `random`

Values = dict[str, dict[str, dict[str, list[float]]]]
"""kind -> reading -> `before`, `after` or `open` -> one value per query.

Readings: `subject_last` is the subject's last token, `subject_max` the largest r over the subject's tokens,
`prompt_max` and `prompt_abs` the largest r and the largest |r| over a neighborhood prompt.
"""


@dataclass(frozen=True)
class Query:
    """One prompt whose keys are read.

    Attributes:
        kind: One of `KINDS`.
        ids: Its tokens, as far as they are looked at.
        subject_first: The first token that is looked at.
        has_subject: Whether those are a subject's tokens; otherwise they are all of the prompt's.
    """

    kind: str
    ids: tuple[int, ...]
    subject_first: int
    has_subject: bool


def others_of(record: EditRecord, records: Sequence[EditRecord]) -> list[EditRequest]:
    """Requests about other subjects, the same whatever order `records` come in."""
    own = record.request
    rest = sorted((r.request for r in records if r.request.subject != own.subject), key=lambda r: r.case_id)
    return Random(f"similarity/{own.case_id}").sample(rest, min(OTHERS, len(rest)))


def queries_of(lm: LM, record: EditRecord, others: Sequence[EditRequest]) -> list[Query]:
    """The prompts of a record, by its variants, its neighborhood probes and `others`."""
    request, v = record.request, record.variants
    name = request.name

    def about(kind: str, template: str, subject: str, context: str = "{}") -> Query:
        t = encode_subject(lm, template, subject, None, context, name)
        return Query(kind, t.ids[: t.subject_last + 1], t.subject_first, True)

    found = []
    if v is not None:
        names = (v.paraphrase_train, v.paraphrase_test, v.shuffle_train, v.shuffle_test)
        for kind, subjects in zip(EQUIVALENT, names, strict=False):
            found += [about(kind, request.prompt, subject) for subject in subjects]
        found += [
            about("long_context", request.prompt, request.named(), f"{escaped(text)} {{}}") for text in v.long_test
        ]
    for probe in _neighborhood(record):
        found.append(Query(probe.kind, encode(lm, probe.text, name=name).ids, 0, False))
    return found + [about("random", other.prompt, other.named()) for other in others]


@torch.no_grad()
def similarities(
    lm: LM,
    records: Sequence[EditRecord],
    plain: Sequence[Delta],
    adapted: Sequence[Delta] | None,
    others: Sequence[Sequence[EditRequest]],
    layers: Sequence[int],
    contexts: Sequence[str],
    edit_key: Callable[[Tensor], Tensor],
) -> list[dict[int, Values]]:
    """r of every query of every record, at every edited layer.

    Args:
        lm: The unedited model.
        records: One edit each.
        plain: What the editor changed, rank one at each layer; its right factor is u.
        adapted: The same with pathways; None where there are none. `before` is r of the key under `plain`, `after`
            that of the key which leaves the pathway under `adapted`.
        others: Of each record, the requests of the kind `random`.
        layers: The edited layers, ascending.
        contexts: The editor's contexts, the bare `"{}"` first.
        edit_key: From the keys of the contexts `[n_contexts, d_in]` to k*.

    Returns:
        Of each record: layer -> values.
    """
    queries = [queries_of(lm, record, more) for record, more in zip(records, others, strict=True)]
    rows, lanes = [], []
    for i, record in enumerate(records):
        r = record.request
        for context in contexts:
            t = encode_subject(lm, r.prompt, r.named(), r.target_new, context, r.name, r.joiner)
            rows.append(t.ids[: t.subject_last + 1])
        rows += [query.ids for query in queries[i]]
        lanes += [i] * (len(contexts) + len(queries[i]))
    found: list[dict[int, Values]] = [{} for _ in records]
    for place, layer in enumerate(layers):
        module, path = lm.arch.module(lm.model, "mlp_out", layer), lm.arch.path("mlp_out", layer)
        if place == 0:  # nothing below it is edited
            native = read_keys(lm, rows, module, None, [-1] * len(rows))
            moved = native
        else:
            native = read_keys(lm, rows, module, BatchedDeltas(lm.model, plain), lanes)
            moved = native if adapted is None else read_keys(lm, rows, module, BatchedDeltas(lm.model, adapted), lanes)
        keys, keys_after = iter(native), iter(moved)
        for i, own in enumerate(queries):
            u = plain[i].of_kind(Factors)[path].right.double()[0].to(lm.device)
            k_star = edit_key(torch.stack([k[-1].double() for k in _take(keys, len(contexts))]))
            _take(keys_after, len(contexts))
            reach = u / (k_star @ u)
            bank = None if adapted is None else PathwayRouter(adapted[i].of_kind(Pathways)[path].adapters)
            found[i][layer] = _values(own, _take(keys, len(own)), _take(keys_after, len(own)), reach, bank)
    return found


@torch.no_grad()
def edit_bounds(lm: LM, record: EditRecord, plain: Delta, peaks: Sequence[float]) -> dict[str, Any]:
    """r_min and r_max of one edit, found by trying (REP's lemmas 4.6 and 4.7; specs/rep.md 5.1).

    `r_min` is the smallest scale of the update, of `SCALES`, at which the rewrite prompt answers `target_new`
    exactly (None: at none). `r_max`, one for each neighborhood probe, is the largest share of the edit that its
    most affected key may receive: the update is scaled until that key's |r| is s, and r_max is the last s up to
    which no argmax of the answer changes; s is of `SCALES` or what the key receives of the edit itself. So both are
    in units of r.

    Args:
        lm: The unedited model.
        record: The edit's record.
        plain: What the editor changed.
        peaks: Of each neighborhood probe, the largest |r| over its tokens (and the layers).
    """
    r, neighbors = record.request, _neighborhood(record)
    rewrite = Probe("rewrite", r.text, r.target_new, joiner=r.joiner)
    grids = [sorted({*SCALES[1:], max(peak, 1e-9)}) for peak in peaks]
    probes, lanes = [rewrite] * len(SCALES), list(range(len(SCALES)))
    scaled = [_scaled(plain, s) for s in SCALES]
    for probe, peak, grid in zip(neighbors, peaks, grids, strict=True):
        probes += [probe] * (1 + len(grid))
        lanes += [-1, *range(len(scaled), len(scaled) + len(grid))]
        scaled += [_scaled(plain, s / max(peak, 1e-9)) for s in grid]
    scores = iter(score(lm, probes, lanes, BatchedDeltas(lm.model, scaled), EvalConfig(generate=[])))
    exact = [s for s, one in zip(SCALES, _take(scores, len(SCALES)), strict=True) if one.exact]
    r_max = []
    for grid in grids:
        base, *tried = _take(scores, 1 + len(grid))
        changed = [one.top1 != base.top1 for one in tried]
        r_max.append(([0.0, *grid])[changed.index(True) if True in changed else len(grid)])
    return {"r_min": exact[0] if exact else None, "r_max": r_max}


def measure(
    lm: LM,
    records: Sequence[EditRecord],
    plain: Sequence[Delta],
    adapted: Sequence[Delta] | None,
    others: Sequence[Sequence[EditRequest]],
    layers: Sequence[int],
    contexts: Sequence[str],
    edit_key: Callable[[Tensor], Tensor],
    bounds: bool,
) -> list[dict[str, Any]]:
    """What result rows keep under `similarity`: `layers` (layer -> `Values`, to 4 decimals) and the bounds.

    The arguments are those of `similarities`; `bounds` asks for the bounds, which take many runs of the model.
    """
    results = []
    every = similarities(lm, records, plain, adapted, others, layers, contexts, edit_key)
    for record, delta, values in zip(records, plain, every, strict=True):
        row: dict[str, Any] = {"layers": {str(layer): _rounded(v) for layer, v in values.items()}}
        if bounds:
            peaks = [v["neighborhood"]["prompt_abs"]["before"] for v in values.values() if "neighborhood" in v]
            found = edit_bounds(lm, record, delta, [max(of_layers) for of_layers in zip(*peaks, strict=True)])
            row |= found | {"r_max": [round(r, 4) for r in found["r_max"]]}
        results.append(row)
    return results


def _values(
    queries: Sequence[Query],
    native: Sequence[Tensor],
    moved: Sequence[Tensor],
    reach: Tensor,
    bank: PathwayRouter | None,
) -> Values:
    """Readings of one record at one layer; keys are `[T_i, d_in]`, `reach` is u / k*.u."""
    values: Values = {}
    for query, before, after in zip(queries, native, moved, strict=True):
        sides = {"before": before[query.subject_first :].double() @ reach}
        if bank is not None:
            text = after[None]  # a gate may remember what it has seen before the subject
            sides["after"] = bank(text)[0, query.subject_first :].double() @ reach
            sides["open"] = (bank.wanted(text).max(-1).values > bank.bar)[query.subject_first :].double()
        for side, r in sides.items():
            if query.has_subject:
                readings = {"subject_last": r[-1], "subject_max": r.max()}
            else:
                readings = {"prompt_max": r.max(), "prompt_abs": r.abs().max()}
            for reading, value in readings.items():
                values.setdefault(query.kind, {}).setdefault(reading, {}).setdefault(side, []).append(float(value))
    return values


def _neighborhood(record: EditRecord) -> list[Probe]:
    return [probe for probe in record.probes if probe.kind == "neighborhood"]


def _scaled(delta: Delta, scale: float) -> Delta:
    return Delta({path: Factors(f.left * scale, f.right) for path, f in delta.of_kind(Factors).items()})


def _take(items: Iterator[Any], count: int) -> list[Any]:
    return [next(items) for _ in range(count)]


def _rounded(values: Values) -> Values:
    rounded: Values = {}
    for kind, readings in values.items():
        for reading, sides in readings.items():
            short = {side: [round(r, 4) for r in own] for side, own in sides.items() if side != "open"}
            short |= {side: [int(gate) for gate in own] for side, own in sides.items() if side == "open"}
            rounded.setdefault(kind, {})[reading] = short
    return rounded
