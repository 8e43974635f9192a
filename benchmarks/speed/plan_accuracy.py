"""What `kedit plan` says beside what is measured: peaks of the phases of ROME, MEMIT, PAC, REP and FT on a CPU.

    python benchmarks/speed/plan_accuracy.py --models random:llama-tiny
    python benchmarks/speed/plan_accuracy.py --models smollm2-135m random:llama-tiny --save plan_accuracy_cpu

Measured is the memory of the tensors that are alive at once, the model's own not counted (`LivePeak`), while a phase
runs on a few requests; planned is what the model's config alone says of the same number of texts of the same lengths.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, read_requests, save
from benchmarks.speed.edit_speed import TERMS, contexts
from kedit.covariance.collect import collect
from kedit.covariance.store import key_width
from kedit.forward.logits import default_batch_tokens
from kedit.forward.replay import Site
from kedit.forward.teacher_forcing import Span, read
from kedit.keyvalue import ValueObjective, ValueOptimization
from kedit.keyvalue.contexts import ContextConfig
from kedit.methods.fine_tuning.dense_changes import DenseChanges
from kedit.methods.fine_tuning.texts import text_of
from kedit.methods.fine_tuning.tune_phase import Recipe, TunePhase
from kedit.methods.pac import TraceConfig, labelled, requests_of
from kedit.methods.pac.tracing.sites import sites
from kedit.methods.pac.tracing.trace import trace
from kedit.methods.rep import AdapterConfig, AdapterTrainer
from kedit.methods.rep.adapter_phase import AdapterPhase
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from kedit.plan import passes
from kedit.plan.adapters import adapter_bytes, usual_task
from kedit.plan.lengths import Lengths, lengths_of
from kedit.plan.phases import MEASURE, SUMS, tuning_bytes
from kedit.plan.shape import ShapeLM, shape_of_config
from kedit.plan.tracing import trace_bytes
from kedit.plan.value_rows import value_bytes
from kedit.request import EditRecord, EditRequest
from kedit.runtime.live_peak import LivePeak

Case = tuple[str, Callable[[], int], Callable[[], Any]]


def measured(lm: LM, run: Callable[[], Any]) -> int:
    """Most bytes alive while `run` runs."""
    with LivePeak([*lm.model.parameters(), *lm.model.buffers()]) as live:
        run()
    return live.peak


def cases(lm: LM, shape: ShapeLM, requests: list[EditRequest], layer: int) -> Iterator[Case]:
    """Name, what is planned, what runs."""
    n, found = len(requests), lengths_of(lm, [EditRecord(r, ()) for r in requests])
    yield from values(lm, shape, requests, layer, found)
    width = key_width(lm, layer)

    def statistics() -> Any:
        ids = torch.randint(5, 200, (2048,), generator=torch.Generator().manual_seed(0))
        return collect(lm, [layer], ids, 256, 512)

    read_one = max(passes.reading(shape, 2, 256, 0), MEASURE * width**2)
    yield "statistics, 1 layer", lambda: int(2 * SUMS * width**2) + read_one, statistics

    texts = [encode(lm, r.text, r.target_new) for r in requests]
    spans = [Span(-1, t.ids[:-1], t.ids[-1:]) for t in texts]
    padded = max(len(s.ids) for s in spans)
    yield "scoring", lambda: passes.reading(shape, n, padded, n), lambda: read(lm, spans, batch_tokens=10_000)

    path = lm.arch.path("mlp_out", layer)
    numbers = weight(lm.model.get_submodule(path)).numel()
    tuned = [text_of(lm, r, "target_new", False) for r in requests]

    def tuning() -> Any:
        changes = DenseChanges(lm, [path], n)
        phase = TunePhase(lm, changes, tuned, Recipe(2, 1e-4), True, layer)
        adam = phase.optimizer()
        for _ in range(2):  # the moments are there from the second step on
            adam.zero_grad()
            loss = phase.loss()
            assert loss is not None
            loss.backward()
            phase.before_step()
            adam.step()

    def plan_tuning() -> int:
        tokens, labels = max(len(t.ids) for t in tuned), round(sum(len(t.labels) for t in tuned) / n)
        own = passes.graph(shape, n, tokens, labels, layer, max(1, default_batch_tokens(lm.device) // tokens))
        return tuning_bytes(numbers * n, numbers, own)

    yield f"FT, {n} lanes", plan_tuning, tuning
    yield pac(lm, shape, requests)
    yield rep(lm, layer, n)


def values(lm: LM, shape: ShapeLM, requests: list[EditRequest], layer: int, found: Lengths) -> Iterator[Case]:
    """v* of ROME (21 contexts) and of MEMIT (6)."""
    n = len(requests)
    for name, counts, site in (
        ("ROME v*", (10, 10), Site("mlp", layer)),
        ("MEMIT v*", (5, 0), Site("output", layer)),
    ):
        templates = contexts(*counts)
        config = ContextConfig([[5, counts[0]], *([[10, counts[1]]] if counts[1] else [])])

        def run(templates: list[str] = templates, site: Site = site) -> Any:
            lanes = ValueOptimization(ValueObjective(lm, requests, templates, [site], TERMS))
            lanes.loss().backward()

        def plan(config: ContextConfig = config, first: int = site.first) -> int:
            return value_bytes(shape, found, n, config, first, gpu=False)

        yield f"{name}, {n} lanes", plan, run


def pac(lm: LM, shape: ShapeLM, requests: list[EditRequest]) -> Case:
    """PAC's trace of all requests in one batch."""
    config = TraceConfig()
    asked = requests_of(lm, [EditRecord(r, ()) for r in requests], "forced")
    batch = labelled(lm, [one.text for one in asked], True)
    places = sites(shape, config.include_gate)
    rows, tokens = batch.ids.shape
    labels = round(len(batch.labels) / rows)
    budget = config.memory * sum(4 * s.depth * s.width for s in places)

    def plan() -> int:
        return trace_bytes(shape, places, rows, tokens, labels, budget)[0]

    return "PAC trace", plan, lambda: trace(lm, [batch], config)


def rep(lm: LM, layer: int, n: int) -> Case:
    """REP's adapters on made-up keys."""
    config, width = AdapterConfig(), key_width(lm, layer)

    def run() -> None:
        trainer = AdapterTrainer([usual_task(config, width, i, "cpu") for i in range(n)], config)
        adam = AdapterPhase(trainer).optimizer()
        for _ in range(2):
            adam.zero_grad()
            trainer.loss().backward()
            adam.step()

    return f"REP adapters, {n} lanes", lambda: adapter_bytes(config, width, n)[0], run


def main() -> None:
    """Compare, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["random:llama-tiny"])
    parser.add_argument("--data", type=Path, help="a robust-query file; made-up requests without it")
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--save", help="name of the figures under benchmarks/results")
    a = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    for name in a.models:
        lm = get_lm(name, "float32", "cpu")
        requests = read_requests(None if name.startswith("random:") else a.data, a.requests)
        shape = shape_of_config(lm.model.config, torch.float32, lm.tokenizer, name)
        for what, plan, run in cases(lm, shape, requests, min(5, lm.arch.n_layers // 3)):
            planned, found = plan(), measured(lm, run)
            figures[f"{name}, {what}"] = {"planned": planned, "measured": found, "ratio": planned / found}
            print(
                f"{name}, {what}: {planned / 1e6:.1f} planned, {found / 1e6:.1f} MB, {planned / found:.3f}", flush=True
            )
    if a.save:
        print("saved", save(a.save, {"settings": vars(a), "figures": figures}).name)


if __name__ == "__main__":
    main()
