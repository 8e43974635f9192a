"""PAC against dense gradients, in one run: tracing a request's critical paths, and the steps that rectify them.

    OMP_NUM_THREADS=1 python benchmarks/speed/pac_speed.py --data ../shared/data/rep_zsre_test.json
    python benchmarks/speed/pac_speed.py --model random:llama-7b --dtype bfloat16 --device cuda --only trace

`pac_speed_trace.py` and `pac_speed_steps.py` say what each part compares. Times are sums over the requests of the best
of some rounds, the ways taking turns; ratios are of CPU seconds, on a GPU of wall seconds.

Memory is the peak of bytes in live tensors that were made meanwhile (counted at every operation by a dispatch mode,
the model's own tensors left out, scratch space inside operations not seen). On a GPU it is what the allocator says.
In bfloat16 the dense steps round away, so that the slices need not agree with them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, read_requests, save, speed_parser
from benchmarks.speed import pac_speed_steps, pac_speed_trace
from benchmarks.speed.measured import clock_of
from kedit.methods.pac import TraceConfig, encode_request


def main() -> None:
    """Run every way and print and save the figures."""
    parser = speed_parser(__doc__, "made-up requests")
    parser.add_argument("--only", choices=["trace", "steps"], help="measure one of the two; both without it")
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--lanes", type=int, nargs="*", default=[4, 8], help="requests that a tracing pass takes")
    parser.add_argument("--memory", type=float, default=TraceConfig.memory, help="tracing's, as in the configs")
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    lm = get_lm(a.model, a.dtype, a.device)
    texts = [encode_request(lm, request) for request in read_requests(a.data, a.requests)]
    settings = {k: v for k, v in vars(a).items() if k != "layer"}
    settings |= {"threads": torch.get_num_threads(), "unit_of_ratios": clock_of(a.device)}
    found: dict[str, Any] = {"settings": settings}
    if a.only != "steps":
        found["trace"] = pac_speed_trace.measure(lm, texts, a.lanes, a.memory, a.rounds, a.device)
    if a.only != "trace":
        found["steps"] = pac_speed_steps.measure(lm, texts, a.rounds, a.device)
    print("saved", save(a.save or f"pac_speed_{a.device}", found).name)


if __name__ == "__main__":
    main()
