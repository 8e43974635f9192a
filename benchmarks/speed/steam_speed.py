"""What STEAM's alignment term costs the optimisation of v*, side by side: the same requests with and without it.

    OMP_NUM_THREADS=1 python benchmarks/speed/steam_speed.py --data ../shared/data/rep_counterfact_valid.json
    python benchmarks/speed/steam_speed.py --model random:llama-7b --dtype bfloat16 --device cuda --lanes 32

Every group of lanes is optimised in turn by the editor's own terms, with the term and a fixed lambda, and with lambda
from the gradients' ratio (two more backward passes at the first step). All take every step, so that only the cost of a
step differs. Anchors are made up: what they are does not change the time. Needs torch and transformers alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, peak_rss_gib, read_requests, save, speed_parser, timed
from benchmarks.speed.edit_speed import TERMS, contexts
from kedit.forward.replay import Site
from kedit.keyvalue import Term, ValueObjective, ValueOptimization, optimise
from kedit.methods.steam.alignment import Alignment
from kedit.model.lm import LM
from kedit.request import EditRequest

CLAMP, LR = 4.0, 0.5
WAYS = ("editor", "fixed", "grad_ratio")


def terms(lm: LM, n: int, layers: list[int], way: str) -> tuple[Term, ...]:
    """The terms of `n` lanes."""
    if way == "editor":
        return TERMS
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(n, len(layers), lm.d_model, generator=generator).to(lm.device)
    return (*TERMS, Alignment(anchors, layers, None, "fixed" if way == "fixed" else "grad_ratio", 0.1))


def optimised(
    lm: LM,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    layer: int,
    layers: list[int],
    way: str,
    steps: int,
) -> ValueOptimization:
    """v* of a group of requests, every step taken."""
    objective = ValueObjective(lm, requests, templates, [Site("mlp", layer)], terms(lm, len(requests), layers, way))
    lanes = ValueOptimization(objective, 0.0, CLAMP)
    optimise(lanes, lr=LR, steps=steps)
    return lanes


def main() -> None:
    """Run the ways in turn, group by group, and print and save the figures."""
    parser = speed_parser(__doc__, "made-up requests")
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--contexts", type=int, nargs=2, default=[10, 10], help="short and long ones, and the bare one")
    parser.add_argument("--lanes", type=int, default=4)
    a = parser.parse_args()
    lm = get_lm(a.model, a.dtype, a.device)
    requests, templates = read_requests(a.data, a.requests), contexts(*a.contexts)
    n = lm.arch.n_layers
    layers = [layer for layer in range(math.ceil(0.4 * n), math.floor(0.7 * n) + 1) if layer > a.layer]
    totals = {way: {"cpu_s": 0.0, "wall_s": 0.0, "steps": 0.0} for way in WAYS}
    optimised(lm, requests[:1], templates, a.layer, layers, "grad_ratio", 2)  # warm-up
    for start in range(0, len(requests), a.lanes):
        group = requests[start : start + a.lanes]
        for way in WAYS if (start // a.lanes) % 2 == 0 else reversed(WAYS):
            lanes, seconds = timed(
                lambda group=group, way=way: optimised(lm, group, templates, a.layer, layers, way, a.steps), a.device
            )
            totals[way]["cpu_s"] += seconds["cpu_s"]
            totals[way]["wall_s"] += seconds["wall_s"]
            totals[way]["steps"] += float(lanes.steps.sum())
    key = "cpu_s" if a.device == "cpu" else "wall_s"
    figures = {
        way: {f"{name}_per_edit": value / len(requests) for name, value in total.items()}
        | {"more_than_editor_percent": 100 * (total[key] / totals["editor"][key] - 1)}
        for way, total in totals.items()
    }
    for way, figure in figures.items():
        print(way, {name: round(value, 3) for name, value in figure.items()})
    about = {"settings": vars(a) | {"layers": layers, "threads": torch.get_num_threads()}, "figures": figures}
    print("saved", save(a.save or f"steam_speed_{a.device}", about | {"peak_rss_gib": peak_rss_gib()}).name)


if __name__ == "__main__":
    main()
