"""Sections of the speed table that take one model and no other script: `benchmarks.gpu.run` starts each as a process.

    python -m benchmarks.gpu.sections vstar --way memit --lanes 1 32 128 --out memit.json

Figures are written after each measurement, so that what is killed keeps what it had found. Lanes that do not fit into
the device's memory are said so, and the next number is tried.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import get_lm, read_requests, timed
from benchmarks.speed.edit_speed import CLAMP, LR, TERMS, contexts
from kedit.covariance import collect
from kedit.covariance.matrix import Covariance
from kedit.data import read_facts
from kedit.evaluation.score import EvalConfig, score
from kedit.forward.replay import Role, Site
from kedit.keyvalue import ValueObjective, ValueOptimization, optimise

Figures = dict[str, Any]
WAYS: dict[str, tuple[Role, tuple[int, int]]] = {
    "rome": ("mlp", (10, 10)),
    "memit": ("output", (0, 5)),
}  # site of v*; short and long contexts


def matmul(a: argparse.Namespace, keep: Callable[[str, Figures], None]) -> None:
    """TFLOP/s of square products of random numbers, in each type."""
    for name in ("bfloat16", "float16", "float32"):
        left, right = (torch.randn(a.size, a.size, device=a.device).to(getattr(torch, name)) for _ in range(2))
        run = lambda left=left, right=right: [left @ right for _ in range(10)]  # noqa: E731
        run()
        _, seconds = timed(run, a.device)
        keep(name, {"size": a.size, "tflop_per_s": 10 * 2 * a.size**3 / seconds["wall_s"] / 1e12})


def vstar(a: argparse.Namespace, keep: Callable[[str, Figures], None]) -> None:
    """Edits per second of v*, without early stop, one group of lanes at a time."""
    lm, (site, n_contexts) = get_lm(a.model, a.dtype, a.device), WAYS[a.way]
    templates = contexts(*n_contexts)

    def run(lanes: int, steps: int) -> None:
        requests = read_requests(None, lanes)
        objective = ValueObjective(lm, requests, templates, [Site(site, a.layer)], TERMS)
        optimise(ValueOptimization(objective, 0.0, CLAMP), lr=LR, steps=steps)

    run(1, 2)
    for lanes in a.lanes:
        try:
            _, seconds = timed(lambda n=lanes: run(n, a.steps), a.device)
        except torch.OutOfMemoryError:
            keep(f"{lanes} lanes", {"out_of_memory": True})
            torch.cuda.empty_cache()
        else:
            keep(f"{lanes} lanes", {"edits_per_s": lanes / seconds["wall_s"], "steps": a.steps, **seconds})


def statistics(a: argparse.Namespace, keep: Callable[[str, Figures], None]) -> None:
    """Tokens per second of C of some layers in one pass, and the Cholesky factor."""
    lm, layers = get_lm(a.model, a.dtype, a.device), a.layers
    ids = torch.randint(lm.vocab_size, (a.tokens,), generator=torch.Generator().manual_seed(0))
    collect(lm, layers, ids[: 2 * a.batch_tokens], 256, a.batch_tokens)
    found, seconds = timed(lambda: collect(lm, layers, ids, 256, a.batch_tokens), a.device)
    keep("pass", {"layers": layers, "tokens": a.tokens, "tokens_per_s": a.tokens / seconds["wall_s"], **seconds})
    moment = found.moments[layers[0]]
    covariance = Covariance(moment.mean(), moment.count)
    _, seconds = timed(lambda: covariance.factor, a.device)
    keep("cholesky", {"d_in": covariance.d_in, **seconds})


def scoring(a: argparse.Namespace, keep: Callable[[str, Figures], None]) -> None:
    """Probes per second, teacher forced and with free generation of the rewrites."""
    lm = get_lm(a.model, a.dtype, a.device)
    probes = [probe for record in read_facts("test")[: a.records] for probe in record.probes]
    score(lm, probes[:8], config=EvalConfig(generate=["rewrite"]))
    for name, kinds in (("teacher forced", []), ("with generation", ["rewrite"])):
        _, seconds = timed(lambda kinds=kinds: score(lm, probes, config=EvalConfig(generate=kinds)), a.device)
        keep(name, {"probes": len(probes), "probes_per_s": len(probes) / seconds["wall_s"], **seconds})


def main() -> None:
    """Measure one section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=["matmul", "vstar", "statistics", "scoring"])
    parser.add_argument("--out", type=Path, required=True, help="file of the figures")
    parser.add_argument("--model", default="random:llama-7b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--way", choices=list(WAYS), default="rome")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--layer", type=int, default=5, help="the edited layer")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 5, 6, 7, 8], help="of the statistics")
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--records", type=int, default=60)
    parser.add_argument("--size", type=int, default=8192)
    a = parser.parse_args()
    found: Figures = {}

    def keep(name: str, figures: Figures) -> None:
        found[name] = figures
        print(a.section, name, figures, flush=True)
        scratch = a.out.with_suffix(".part")
        scratch.write_text(json.dumps(found))
        os.replace(scratch, a.out)

    globals()[a.section](a, keep)


if __name__ == "__main__":
    main()
