"""What one optimiser step of v* hands to the device: operations, bytes copied, padded tokens; and its CPU seconds.

    python benchmarks/speed/operations_v.py --data ../shared/data/counterfact_edit.json --call before
    python benchmarks/speed/operations_v.py --data ../shared/data/counterfact_edit.json --call after

ROME's rows (21 contexts, the output of an MLP) and MEMIT's (6, the residual stream) of real prompts, on a Llama that
has the depth of the 7B model and little else, and on SmolLM2. A step is the losses, the backward pass, Adam and the
clamp; no lane converges. Operations, bytes and tokens do not depend on the machine. `suffix_tokens_run` are those of
the groups. A run replaces what the file holds under its name and leaves the others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import ROOT, get_lm, save, timed
from benchmarks.speed.dispatched import Dispatched
from benchmarks.speed.edit_speed import CLAMP, LR, TERMS, contexts
from benchmarks.speed.measured import LivePeak
from kedit.data import read_counterfact
from kedit.data.batching import suffix_length
from kedit.forward.binding import wrap_lm
from kedit.forward.replay import Site
from kedit.keyvalue import ValueObjective, ValueOptimization
from kedit.model.lm import LM
from kedit.model.tokenization import encode_subject
from kedit.request import EditRequest

MOVES = ("aten.cat", "aten.copy_", "aten._to_copy", "aten.clone", "aten.index", "aten.slice_backward")
THIN = {"hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 4, "num_key_value_heads": 4}
METHODS = {"rome": (10, 10, Site("mlp", 5)), "memit": (5, 0, Site("output", 8))}  # short and long contexts, site


class Moved(Dispatched):
    """Counts operations, and the bytes that those write which only move numbers.

    Attributes:
        moved: Name -> bytes of their results.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As the base class does."""
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if (name := str(func)).startswith(MOVES) and isinstance(out, Tensor):
            self.moved[name] += out.numel() * out.element_size()
        return out


def thin_llama(lm: LM) -> LM:
    """A random model of Llama-2-7B's depth with the tokenizer of `lm`."""
    config = AutoConfig.for_model("llama", vocab_size=lm.vocab_size, num_hidden_layers=32, **THIN)
    torch.manual_seed(0)
    return wrap_lm(AutoModelForCausalLM.from_config(config), lm.tokenizer, "llama-thin")


class Steps:
    """Steps of some lanes side by side.

    Args:
        lm: The model.
        requests: One lane each.
        method: One of `METHODS`.
    """

    def __init__(self, lm: LM, requests: list[EditRequest], method: str) -> None:
        short, long, site = METHODS[method]
        self.templates = contexts(short, long)
        objective = ValueObjective(lm, requests, self.templates, [site], TERMS)
        self.lanes = ValueOptimization(objective, stop_loss=0.0, clamp_norm_factor=CLAMP)
        self.adam = torch.optim.Adam([self.lanes.delta], lr=LR)

    def __call__(self) -> None:
        """One step."""
        self.adam.zero_grad()
        self.lanes.loss().backward()
        self.adam.step()
        self.lanes.after_step()
        _ = self.lanes.done


def tokens(lm: LM, requests: list[EditRequest], method: str) -> dict[str, float]:
    """Tokens of the rows that a step runs: real ones, and those of one block padded to the longest row."""
    short, long, _ = METHODS[method]
    rows = []
    for r in requests:
        for context in contexts(short, long):
            t = encode_subject(lm, r.prompt, r.named(), r.target_new, context)
            rows.append((len(t.ids) - 1 - t.subject_last, t.subject_last))
        rows.append((1, encode_subject(lm, "{} is a", r.named()).subject_last))
    suffixes, prefixes = zip(*rows, strict=True)
    real, padded = sum(suffixes), len(rows) * max(suffixes)
    return {
        "rows": len(rows),
        "suffix_tokens": real,
        "suffix_tokens_padded": padded,
        "padding_share": 1 - real / padded,
        "prefix_padding_share": 1 - sum(prefixes) / (len(rows) * max(prefixes)),
    }


def measure(lm: LM, requests: list[EditRequest], method: str, steps: int) -> dict[str, Any]:
    """The figures of one setting."""
    step = Steps(lm, requests, method)
    step()
    with Moved() as moved:
        step()
    seconds = [timed(step, "cpu")[1]["cpu_s"] for _ in range(steps)]
    groups = getattr(step.lanes.objective.replay, "groups", None)
    run = None if groups is None else [group.hidden.shape[:2].numel() for group in groups]
    return tokens(lm, requests, method) | {
        "groups": None if run is None else len(run),
        "suffix_tokens_run": None if run is None else sum(run),
        "operations": moved.n,
        "waits": moved.waits.total(),
        "moved_mb": round(sum(moved.moved.values()) / 1e6, 2),
        **memory(lm, step),
        "cpu_s_per_step": min(seconds, default=None),
        "by_name": dict(moved.operations.most_common(24)),
        "moved_mb_by_name": {name: round(n / 1e6, 2) for name, n in moved.moved.most_common(6)},
    }


def memory(lm: LM, step: Steps) -> dict[str, float]:
    """What the lanes keep from step to step, and the most that a step holds beside that and the model."""
    replay: Any = step.lanes.objective.replay
    kept: list[Tensor] = []
    for group in getattr(replay, "groups", [replay]):
        prefix = group._prefix
        kept += [group.hidden, *(t for t in (*prefix.keys, *prefix.values) if t is not None)]
    with LivePeak([*lm.model.parameters(), *lm.model.buffers(), *kept]) as live:
        step()
    return {"kept_mb": round(sum(t.nbytes for t in kept) / 1e6, 2), "peak_mb": round(live.peak / 1e6, 2)}


def main() -> None:
    """Measure, print, and put the figures into the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a CounterFact file")
    parser.add_argument("--call", default="after", help="what the file calls these figures")
    parser.add_argument("--steps", type=int, default=2, help="steps that are timed, of which the fastest counts")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--smollm2-rows", type=int, default=180, help="no more rows than these on SmolLM2")
    parser.add_argument("--save", default="operations_v_cpu")
    a = parser.parse_args()
    smollm2 = get_lm("smollm2-135m", "float32", "cpu")
    records = read_counterfact(str(a.data))[: 4 * max(a.lanes)]
    requests = [record.request for record in sorted(records, key=suffix_length)]  # as a run's edit batches are sorted
    figures: dict[str, Any] = {}
    for name, lm in (("llama_thin", thin_llama(smollm2)), ("smollm2", smollm2)):
        for method, (short, long, _) in METHODS.items():
            for n in a.lanes:
                if lm is smollm2 and n * (short + long + 2) > a.smollm2_rows:
                    continue
                middle = (len(requests) - n) // 2
                found = measure(lm, requests[middle : middle + n], method, a.steps)
                figures[f"{name}_{method}_{n}"] = found
                shown = {key: value for key, value in found.items() if not isinstance(value, dict)}
                print(name, method, n, shown, flush=True)
                add(a.save, a.call, figures, {"steps": a.steps, "lanes": a.lanes})


def add(file: str, call: str, figures: dict[str, Any], settings: dict[str, Any]) -> None:
    """Puts figures into a result file, beside those that it has under other names."""
    path = ROOT / "benchmarks" / "results" / f"{file}.json"
    old = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else {}
    save(file, {"settings": settings, "figures": old | {call: old.get(call, {}) | figures}})


if __name__ == "__main__":
    main()
