"""Operations that PAC hands to the device: for the trace of a request, and for a pair of its steps.

    OMP_NUM_THREADS=1 python benchmarks/speed/operations_pac.py --label after
    OMP_NUM_THREADS=1 python benchmarks/speed/operations_pac.py --label after --model smollm2-135m

A GPU waits for launches where operations are small and many, so that their number is the time; it is the same on every
machine. The ways are those of `pac_speed.py`: "dense" is the released code's. "model" is what every way has to run: the
forward pass, the loss at the labelled positions, and the backward pass down to the lowest matrix with nodes, of frozen
weights, twice for a pair of steps. `above_model` is what a way adds to that. Views and allocations are not counted; on
a CPU Adam takes its tensors one by one (and reads its step count, which a GPU does not wait for), on a GPU in lists, so
that a pair is also counted as there (`foreach`).

"stacked" is how kedit runs where the model is not on a CPU (kedit/methods/pac/stacked.py), here on the CPU.

What is counted is never a way's first run. Waits are operations for whose result the host waits; `tolist`, by which a
step reads its losses, is none of them on a CPU. The peak is of live tensors above the model. Figures under another
label (those of an earlier version) stay in the file.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import ROOT, get_lm, read_requests, save, speed_parser, timed
from benchmarks.speed.dispatched import Dispatched
from benchmarks.speed.measured import peak_bytes
from benchmarks.speed.pac_speed_steps import SIZE, WEIGHT, Dense, Slim, Way, asked
from benchmarks.speed.pac_speed_trace import dense, traced
from kedit.forward.binding import wrap_lm
from kedit.forward.packing import logits_of
from kedit.methods.pac import Labelled, Request, TraceConfig, encode_request, labelled, select, sites, trace, trace_each
from kedit.model.lm import LM
from kedit.plan.shape import bytes_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "tiny-llama": {
        "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    },
    "tiny-gpt2": {"model_type": "gpt2", "vocab_size": 512, "n_embd": 64, "n_inner": 176, "n_layer": 4, "n_head": 4},
    "llama-7b-layers": {
        "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 32,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    },
}  # fmt: skip
CASES = [("tiny-llama", "float32"), ("tiny-gpt2", "float32"), ("llama-7b-layers", "float32"),
         ("llama-7b-layers", "bfloat16")]  # fmt: skip
"""Shapes and types that are counted without `--model`: operations do not depend on the width."""


def model_of(name: str, dtype: str) -> LM:
    """A random model of one of the shapes above, or any that the benchmarks know."""
    if name not in SHAPES:
        return get_lm(name, dtype, "cpu")
    shape = dict(SHAPES[name])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return wrap_lm(model.eval().requires_grad_(False), bytes_tokenizer(), name)


def counted(lm: LM, run: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Operations, waits, peak of memory and CPU seconds of `run`, after a first one that is not counted."""
    run()
    peak = peak_bytes(lm, run) / 1e6
    with Dispatched() as found:
        run()
    seconds = min(timed(run, "cpu")[1]["cpu_s"] for _ in range(rounds))
    return {"operations": found.n, "waits": found.waits.total(), "cpu_s": seconds, "peak_mb": peak}


class Bare:
    """The model's own part of a pair: two forward and backward passes of frozen weights, and no step."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        first = sites(lm)[0]
        self.module = lm.model.get_submodule(first.path)

    def pair(self, requests: Sequence[Request]) -> None:
        batch = labelled(self.lm, [request.text for request in requests])
        texts = [request.text.ids[:-1] for request in requests]
        for scale in (1.0, WEIGHT):
            self.once(lambda: logits_of(self.lm, texts, batch.rows, batch.cols), batch, scale)

    def once(self, logits: Callable[[], Any], batch: Labelled, scale: float) -> None:
        """A forward and a backward pass whose graph begins at the lowest matrix with nodes."""
        handle = self.module.register_forward_hook(lambda _, args, output: output.detach().requires_grad_())
        try:
            (scale * batch.loss_of(logits().float())).backward()
        finally:
            handle.remove()


def steps(lm: LM, requests: list[Request], rounds: int) -> dict[str, Any]:
    """Figures of a pair of steps, by each way."""
    config = TraceConfig(memory=2)
    selection = select(trace(lm, [labelled(lm, [r.text for r in requests])], config), config)
    copied = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.name)
    ways: dict[str, Way] = {
        "shared_adam": Slim(lm, selection, shared=True),
        "two_adams": Slim(lm, selection, shared=False),
        "joint": Slim(lm, selection, shared=False, objective="joint"),
        "dense": Dense(copied, selection),
    }
    for name in ("shared_adam", "two_adams", "joint"):
        way = Slim(lm, selection, shared=name == "shared_adam", objective="joint" if name == "joint" else "alternate")
        way.sides.stacked = True
        ways[f"{name}_stacked"] = way
    found = {"model": counted(lm, lambda: Bare(lm).pair(requests), rounds)}
    for name, way in ways.items():
        found[name] = counted(way.lm, lambda w=way: w.pair(requests), rounds)
        for group in way.optimizer.param_groups:
            group["foreach"] = True
        with Dispatched() as lists:
            way.pair(requests)
        found[name] |= {"operations_foreach": lists.n, "waits_foreach": lists.waits.total()}
    half = ("joint", "joint_stacked")  # one forward and backward pass
    for name, figures in found.items():
        own = found["model"]["operations"] // (2 if name in half else 1)
        if name != "model":
            figures["above_model"] = figures["operations"] - own
            figures["above_model_foreach"] = figures["operations_foreach"] - own
    return found


def tracing(lm: LM, texts: Sequence[Any], rounds: int) -> dict[str, Any]:
    """Figures of a trace: one request, and four in a pass, each with its scores and its selection."""
    config = TraceConfig()
    one, four = labelled(lm, texts[:1]), labelled(lm, texts[:4])
    bare = Bare(lm)

    def stacked(batch: Labelled, config: TraceConfig = config) -> Any:
        return [select(scores, config) for scores in trace_each(lm, batch, config, stacked=True)]

    large = TraceConfig(memory=100)  # no spans of layers and no parts of a batch: as for models of billions

    found = {
        "model": counted(lm, lambda: bare.once(lambda: one.logits(lm), one, 1.0), rounds),
        "one": counted(lm, lambda: traced(lm, one, config), rounds),
        "four": counted(lm, lambda: traced(lm, four, config), rounds),
        "one_stacked": counted(lm, lambda: stacked(one), rounds),
        "four_stacked": counted(lm, lambda: stacked(four), rounds),
        "one_without_spans": counted(lm, lambda: traced(lm, one, large), rounds),
        "four_without_spans": counted(lm, lambda: traced(lm, four, large), rounds),
        "one_stacked_without_spans": counted(lm, lambda: stacked(one, large), rounds),
        "four_stacked_without_spans": counted(lm, lambda: stacked(four, large), rounds),
        "dense": counted(lm, lambda: dense(lm, one, config), rounds),
    }
    for name, figures in found.items():
        if name != "model":
            figures["above_model"] = figures["operations"] - found["model"]["operations"]
    return found


def main() -> None:
    """Count every case, print the figures and save them under their label."""
    parser = speed_parser(__doc__, "made-up requests")
    parser.set_defaults(model=None)
    parser.add_argument("--label", default="after", help="what the figures are called in the file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["steps", "trace"], help="count one of the two; both without it")
    parser.add_argument("--cases", type=int, default=len(CASES), help="so many of the cases, from the first")
    a = parser.parse_args()
    cases = [(a.model, a.dtype)] if a.model else CASES[: a.cases]
    name = a.save or "operations_pac_cpu"
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    figures = kept.get("figures", {})
    for shape, dtype in cases:
        lm = model_of(shape, dtype)
        texts = [encode_request(lm, request) for request in read_requests(a.data, 4)]
        requests = asked(lm, texts[:SIZE])
        found = figures.setdefault(f"{shape} {dtype}", {}).setdefault(a.label, {"layers": lm.arch.n_layers})
        if a.only != "trace":
            found["steps"] = steps(lm, requests, a.rounds)
        if a.only != "steps":
            found["trace"] = tracing(lm, texts, a.rounds)
        for part in ("steps", "trace"):
            for way, numbers in found.get(part, {}).items():
                print(shape, dtype, a.label, part, way, {k: float(f"{v:.4g}") for k, v in numbers.items()}, flush=True)
        save(name, {"figures": figures})
    print("saved", save(name, {"figures": figures}).name)


if __name__ == "__main__":
    main()
