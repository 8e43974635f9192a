"""PAC's tracing of single requests: factors and tiles against dense gradients (`pac_speed.py` runs it).

Each request is traced for itself (scope `edit`): scores of every key and value node, then T+ and T-. "dense" is what
the released code does to a batch, without its copies: every FFN matrix requires a gradient, logits at all positions,
backward, z-scores of the whole gradient matrices. "one" traces requests one after another; "lanes_N" traces N in one
pass, which dense gradients cannot do, since they come summed. Tokenising is not counted.

Peaks of memory are also given as a share of one dense set of float32 gradients of the key and value matrices. The
scores that a pass returns are in them (0.4 MB per request).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.speed.measured import peak_bytes, show, take_turns
from kedit.methods.pac import (
    Labelled,
    Scores,
    Selection,
    TraceConfig,
    labelled,
    select,
    sites,
    trace,
    trace_each,
)
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.model.tokenization import Tokens

Traced = list[tuple[Scores, Selection]]


def dense(lm: LM, batch: Labelled, config: TraceConfig) -> Traced:
    """The released code's way (specs/pac.md 2.4), for a batch of one request."""
    found = sites(lm)
    maps = {site: lm.model.get_submodule(site.path) for site in found}
    weights: list[Any] = [module.weight for module in maps.values()]
    for parameter in weights:
        parameter.requires_grad_()
    try:
        logits = lm.model(input_ids=batch.ids, use_cache=False).logits.float()
        F.cross_entropy(logits[batch.rows, batch.cols], batch.labels).backward()
        scores: Scores = {}
        for site, parameter in zip(found, weights, strict=True):
            stored = weight(maps[site])
            g = parameter.grad if stored.shape == parameter.shape else parameter.grad.T
            g = (g.T if site.axis == 0 else g).float()
            z = (g - g.mean(1, keepdim=True)) / g.std(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            scores[site] = z.abs().mean(0).cpu()
    finally:
        for parameter in weights:
            parameter.grad = None
            parameter.requires_grad_(False)
    critical = {site: value.topk(config.nodes).indices.sort().values for site, value in scores.items()}
    low = {site: value.argsort(stable=True)[: config.contrast_nodes].sort().values for site, value in scores.items()}
    return [(scores, Selection(critical, low))]


def traced(lm: LM, batch: Labelled, config: TraceConfig) -> Traced:
    """Every text of a batch by kedit's way."""
    each = [trace(lm, [batch], config)] if len(batch.ids) == 1 else trace_each(lm, batch, config)
    return [(scores, select(scores, config)) for scores in each]


def agreement(found: Traced, wanted: Traced) -> dict[str, float]:
    """Share of nodes that both ways select; largest difference of scores as a share of a matrix's highest."""
    same, gap = {"critical": [0, 0], "contrast": [0, 0]}, 0.0
    for (scores, selection), (exact, reference) in zip(found, wanted, strict=True):
        for name, count in same.items():
            for site, nodes in getattr(reference, name).items():
                count[0] += int(torch.isin(getattr(selection, name)[site], nodes).sum())
                count[1] += len(nodes)
        gap = max(gap, *(float((scores[site] - exact[site]).abs().max() / exact[site].max()) for site in exact))
    return {f"same_{name}": hit / n for name, (hit, n) in same.items()} | {"largest_score_difference_of_highest": gap}


def measure(
    lm: LM, texts: Sequence[Tokens], lanes: Sequence[int], memory: float, rounds: int, device: str
) -> dict[str, Any]:
    """Seconds, peaks and agreement of every way.

    Args:
        lm: The model.
        texts: Prompts with targets.
        lanes: Requests in a pass, each number a way of its own.
        memory: The budget of `TraceConfig`.
        rounds: Rounds over all texts.
        device: Where the model is.
    """
    config = TraceConfig(memory=memory)
    texts = sorted(texts, key=lambda text: len(text.ids))
    set_bytes = 4 * sum(site.width * site.depth for site in sites(lm))

    def groups(n: int) -> list[Labelled]:
        return [labelled(lm, texts[i : i + n]) for i in range(0, len(texts), n)]

    ways = {"one": (traced, groups(1)), **{f"lanes_{n}": (traced, groups(n)) for n in lanes}}
    ways["dense"] = (dense, groups(1))
    peaks: dict[str, int] = {}
    for name, (way, batches) in ways.items():  # it also warms up: the first pass through a model is slower
        peaks[name] = max(peak_bytes(lm, lambda w=way, b=batch: w(lm, b, config)) for batch in batches)
    runs = {
        name: [lambda w=way, b=batch: w(lm, b, config) for batch in batches] for name, (way, batches) in ways.items()
    }
    figures, parts = take_turns(runs, rounds, len(texts), "request", device)
    results: dict[str, Traced] = {name: [one for part in own for one in part] for name, own in parts.items()}
    for name, figure in figures.items():
        figure |= {"peak_mb": peaks[name] / 1e6, "peak_share_of_dense_set": peaks[name] / set_bytes}
        figure |= {} if name == "dense" else agreement(results[name], results["dense"])
    show("trace", figures)
    return {"tokens": [len(text.ids) for text in texts], "dense_set_mb": set_bytes / 1e6, "figures": figures}
