"""A step of v* with and without `edit.recompute`: bytes that it holds, CPU seconds, and whether the bits are the same.

python benchmarks/speed/recompute_speed.py --data ../shared/data/rep_counterfact_valid.json --save recompute_cpu
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, read_requests, save, speed_parser
from benchmarks.speed.edit_speed import TERMS, contexts
from benchmarks.speed.measured import peak_bytes
from kedit.forward.recompute import recomputing
from kedit.forward.replay import Site
from kedit.keyvalue import ValueObjective, ValueOptimization


def main() -> None:
    """Measure, print, save."""
    parser = speed_parser(__doc__, "made-up requests")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=2)
    a = parser.parse_args()
    lm = get_lm(a.model, a.dtype, a.device)
    requests = read_requests(a.data, max(a.lanes))
    figures = {}
    for n in a.lanes:
        lanes = ValueOptimization(
            ValueObjective(lm, requests[:n], contexts(10, 10), [Site("mlp", a.layer)], TERMS), 0.0
        )
        gradients, best = {}, {False: float("inf"), True: float("inf")}
        peaks = {}

        def step(recompute: bool, lanes: ValueOptimization = lanes) -> torch.Tensor:
            lanes.delta.grad = None
            with recomputing(lm, range(a.layer + 1, lm.arch.n_layers if recompute else a.layer + 1)):
                lanes.loss().backward()
            assert lanes.delta.grad is not None
            return lanes.delta.grad.clone()

        for _ in range(a.rounds):
            for recompute in best:
                start = time.process_time()
                gradients[recompute] = step(recompute)
                best[recompute] = min(best[recompute], time.process_time() - start)
        for recompute in best:
            peaks[recompute] = peak_bytes(lm, lambda recompute=recompute: step(recompute))
        figures[f"{n} lanes"] = {
            "bytes": peaks[False], "bytes_recomputed": peaks[True], "cpu_s": best[False],
            "cpu_s_recomputed": best[True], "same_bits": torch.equal(*gradients.values()),
        }  # fmt: skip
        print(n, "lanes", figures[f"{n} lanes"], flush=True)
    print("saved", save(a.save or "recompute_cpu", {"settings": vars(a), "figures": figures}).name)


if __name__ == "__main__":
    main()
