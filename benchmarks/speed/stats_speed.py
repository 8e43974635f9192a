"""Statistics of five layers against one layer, over the same tokens, and against one pass per layer.

    python benchmarks/speed/stats_speed.py --model smollm2-135m --text ../shared/data/wikitext2_valid.txt

Times are CPU seconds of this process (wall seconds on a GPU); loading and tokenising are not in them. Each
way runs `--repeats` times, in turn, and the smallest time counts. Fails if five layers cost over 1.3 of one.
`--count` counts operations instead, as they are dispatched, for 1,000 tokens in the batches of a CPU and of a GPU: a
figure that does not depend on the machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, peak_rss_gib, save, timed
from benchmarks.speed.dispatched import Dispatched
from kedit.covariance import StatsConfig, collect
from kedit.covariance.collect import default_batch_tokens
from kedit.covariance.corpus import load_ids
from kedit.model.lm import LM

BOUND = 1.3


def tokens_of(lm: LM, text: Path | None, n: int) -> torch.Tensor:
    """The first `n` tokens of a text file, or `n` random ones."""
    if text is None:
        return torch.randint(lm.vocab_size, (n,), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        return load_ids(lm, StatsConfig(corpus=str(text), tokens=n), Path(folder))


def per_batch(lm: LM, layers: list[int], length: int) -> dict[str, float]:
    """Operations, views and waits of a batch, whatever its size: of two passes that differ by eight batches alone.

    Both are measured equally often on the way (after an eighth, a quarter, half and all of the text).
    """
    counts = []
    for batches in (9, 17):
        with Dispatched() as seen:
            collect(lm, layers, torch.arange(batches * length) % lm.vocab_size, length, length)
        counts.append((seen.n, seen.views.total(), seen.waits.total()))
    names = ("operations", "views", "waits")
    return {name: (more - less) / 8 for name, less, more in zip(names, *counts, strict=True)}


def count(layers: list[int], length: int, name: str) -> None:
    """Operations of a tiny model's pass in batches of either device; of a model the number of layers alone matters."""
    lm = get_lm("random:llama-tiny", "float32", "cpu")
    if max(layers) >= lm.arch.n_layers:
        layers = list(range(lm.arch.n_layers - len(layers), lm.arch.n_layers))
    own = per_batch(lm, layers, length)
    figures: dict[str, Any] = {"model": "random:llama-tiny", "layers": layers, "sequence_length": length}
    figures |= {"per_batch": own, "per_1000_tokens": {}}
    for batch in (4096, default_batch_tokens(torch.device("cuda"))):
        figures["per_1000_tokens"][str(batch)] = {what: 1000 * n / batch for what, n in own.items()}
        print(
            f"batches of {batch} tokens: {own['operations']:.0f} operations each, "
            f"{1000 * own['operations'] / batch:.1f} for 1,000 tokens; {own['waits']:.0f} waits each"
        )
    print(f"written to {save(name, figures)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 5, 6, 7, 8])
    parser.add_argument("--text", type=Path, help="a text file; without it, random tokens")
    parser.add_argument("--tokens", type=int, default=StatsConfig().tokens)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, help="by device without it")
    parser.add_argument(
        "--count", action="store_true", help="count operations of a random tiny model, and nothing else"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", default="stats_speed_cpu", help="of the file under benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.count:
        count(args.layers, args.sequence_length, args.name)
        return
    lm = get_lm(args.model, args.dtype, args.device)
    args.batch_tokens = args.batch_tokens or default_batch_tokens(lm.device)
    ids = tokens_of(lm, args.text, args.tokens)
    shape = (ids, args.sequence_length, args.batch_tokens)
    deepest = max(args.layers)
    ways = {
        "one layer": lambda: collect(lm, [deepest], *shape),
        "all layers, one pass": lambda: collect(lm, args.layers, *shape),
        "all layers, a pass each": lambda: [collect(lm, [layer], *shape) for layer in args.layers],
    }
    collect(lm, args.layers, ids[: args.batch_tokens], *shape[1:])  # warm up
    clock = "cpu_s" if args.device == "cpu" else "wall_s"
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(args.repeats):
        for way, run in ways.items():
            _, seconds = timed(run, args.device)
            runs[way].append({**seconds, "peak_rss_gib": peak_rss_gib()})
    best = {way: min(run[clock] for run in timings) for way, timings in runs.items()}
    for way, seconds in best.items():
        rate, times = len(ids) / seconds, seconds / best["one layer"]
        print(f"{way:25} {seconds:8.2f} {clock} {times:6.2f} x {rate:9.0f} tokens/s")
    ratio = best["all layers, one pass"] / best["one layer"]
    figures = {
        "model": args.model,
        "dtype": args.dtype,
        "layers": args.layers,
        "tokens": len(ids),
        "text": args.text.name if args.text else "random",
        "sequence_length": args.sequence_length,
        "batch_tokens": args.batch_tokens,
        "clock": clock,
        "best": best,
        "ratio": ratio,
        "ratio_a_pass_each": best["all layers, a pass each"] / best["one layer"],
        "tokens_per_s": {way: len(ids) / seconds for way, seconds in best.items()},
        "peak_rss_gib": peak_rss_gib(),
        "runs": runs,
    }
    print(f"peak memory {peak_rss_gib():.2f} GiB (model included); written to {save(args.name, figures)}")
    if ratio > BOUND:
        raise SystemExit(f"{len(args.layers)} layers cost {ratio:.2f} of one, more than {BOUND}")


if __name__ == "__main__":
    main()
