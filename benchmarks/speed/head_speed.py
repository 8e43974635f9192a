"""The output head at a few rows on a CPU: PyTorch's product against the order that `kedit.forward.thin_head` takes.

    OMP_NUM_THREADS=1 python benchmarks/speed/head_speed.py

Logits of `n` rows and the gradient in them, at the size of a model's head, float32, random numbers. Both ways take
turns; CPU milliseconds of the best round. At one row, and from eight on, kedit leaves the head as it is: these must
come out alike.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import save, timed
from kedit.forward.thin_head import thin_head


def best(runs: dict[str, Callable[[], None]], rounds: int, repeats: int) -> dict[str, float]:
    """Milliseconds of each, the best of some rounds in which they take turns."""
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            _, seconds = timed(lambda run=run: [run() for _ in range(repeats)], "cpu")
            found[name] = min(found[name], seconds["cpu_s"] / repeats * 1e3)
    return found


def main() -> None:
    """Measure every number of rows, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=49152, help="SmolLM2's")
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 2, 3, 4, 5, 6, 7, 8, 12])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", default="head_speed_cpu", help="name of the figures under benchmarks/results")
    a = parser.parse_args()
    head = nn.Linear(a.width, a.vocabulary, bias=False).requires_grad_(False)
    figures: dict[int, dict[str, float]] = {}
    for n in a.rows:
        hidden = torch.randn(1, n, a.width, requires_grad=True)
        grad = torch.randn(1, n, a.vocabulary)

        def there_and_back(x: Tensor = hidden, g: Tensor = grad) -> None:
            torch.autograd.grad(head(x), x, g)

        def thin(n: int = n, run: Callable[[], None] = there_and_back) -> None:
            with thin_head(head, n):
                run()

        figures[n] = best({"torch_ms": there_and_back, "kedit_ms": thin}, a.rounds, a.repeats)
        figures[n]["times_less"] = figures[n]["torch_ms"] / figures[n]["kedit_ms"]
        print(f"{n:3d} rows", *(f"{name} {value:.2f}" for name, value in figures[n].items()))
    settings = vars(a) | {"threads": torch.get_num_threads()}
    print("saved", save(a.save, {"settings": settings, "rows": figures}).name)


if __name__ == "__main__":
    main()
