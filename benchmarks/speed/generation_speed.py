"""Greedy texts of many rewrites: operations a token and time, by size of batch, against other ways.

    OMP_NUM_THREADS=1 python benchmarks/speed/generation_speed.py --data ../shared/data/rep_counterfact_valid.json
    python benchmarks/speed/generation_speed.py --model random:llama-7b --dtype bfloat16 --device cuda --batches 64 1024

The ways: kedit's own (`kedit.forward.greedy`); "concatenated", a cache that grows by a copy of itself and a mask made
anew for every token, as kedit did before; transformers' `generate` on the same padded batch, and one prompt at a time
(a few of them, the time of all reckoned from these). No text ends before its last token, so that all ways do the same
work. Operations are those of a step after the first, counted as they are dispatched: a figure that does not depend on
the machine. Times are CPU seconds (wall seconds on a GPU) and the least of `--repeats`, the ways in turn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, read_requests, save, speed_parser, timed
from benchmarks.speed.dispatched import Dispatched
from kedit.forward.greedy import greedy_ids, prompt_ids
from kedit.forward.logits import frozen, logits_at
from kedit.model.lm import LM

Rows = Sequence[tuple[int, ...]]
COUNTED = (3, 5)  # tokens of the two runs whose difference is counted


def endless(lm: LM) -> None:
    """No token ends a text."""
    lm.model.generation_config.eos_token_id = None  # type: ignore[union-attr]
    lm.tokenizer.eos_token = None


def batched(rows: Rows, size: int) -> list[Rows]:
    """Rows of like length together, the longest first."""
    order = sorted(rows, key=len, reverse=True)
    return [order[i : i + size] for i in range(0, len(order), size)]


def padded(lm: LM, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[lm.pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(lm.device), mask.to(lm.device)


def own(lm: LM, rows: Rows, new: int, size: int) -> list[list[int]]:
    """kedit's texts."""
    return [text for part in batched(rows, size) for text in greedy_ids(lm, part, new, batch_tokens=1 << 30)]


@torch.no_grad()
def concatenated(lm: LM, rows: Rows, new: int, size: int) -> list[list[int]]:
    """A cache and a mask that grow by a copy of themselves, the head by a hook, for every token."""
    found: list[list[int]] = []
    with frozen(lm.model):
        for part in batched(rows, size):
            ids, mask = padded(lm, part)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            cache, texts = DynamicCache(config=lm.model.config), [[] for _ in part]
            for _ in range(new):
                every = torch.arange(len(part))
                logits, _ = logits_at(
                    lm, ids, every, torch.full_like(every, -1), attention_mask=mask, position_ids=positions,
                    past_key_values=cache, use_cache=True,
                )  # fmt: skip
                token = logits.argmax(-1)
                for text, value in zip(texts, token.tolist(), strict=True):
                    text.append(value)
                ids, positions = token.unsqueeze(1), positions[:, -1:] + 1
                mask = torch.cat([mask, mask.new_ones(len(part), 1)], 1)
            found += texts
    return found


@torch.no_grad()
def hugging_face(lm: LM, rows: Rows, new: int, size: int) -> list[list[int]]:
    """transformers' `generate`."""
    found: list[list[int]] = []
    for part in batched(rows, size):
        ids, mask = padded(lm, part)
        texts = lm.model.generate(  # type: ignore[operator]
            ids, attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=lm.pad_id
        )
        found += texts[:, ids.shape[1] :].tolist()
    return found


WAYS: dict[str, Callable[[LM, Rows, int, int], list[list[int]]]] = {
    "kedit": own,
    "concatenated": concatenated,
    "transformers": hugging_face,
}


def per_step(lm: LM, way: str, rows: Rows) -> dict[str, float]:
    """Operations, views and waits of one step of a batch of all rows, after the first."""
    counts = []
    for new in COUNTED:
        with Dispatched() as seen:
            WAYS[way](lm, rows, new, len(rows))
        counts.append((seen.n, seen.views.total(), seen.waits.total()))
    steps = COUNTED[1] - COUNTED[0]
    names = ("operations", "views", "waits")
    return {name: (more - less) / steps for name, less, more in zip(names, *counts, strict=True)}


def main() -> None:
    """Count, time, print and save."""
    parser = speed_parser(__doc__, "made-up facts")
    parser.set_defaults(save="generation_speed_cpu")
    parser.add_argument("--rewrites", type=int, default=64)
    parser.add_argument("--new", type=int, default=32, help="tokens of each text")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 64], help="rows of a batch")
    parser.add_argument("--alone", type=int, default=4, help="rewrites that are timed one at a time; 0: none")
    parser.add_argument("--repeats", type=int, default=1)
    a = parser.parse_args()
    lm = get_lm(a.model, a.dtype, a.device)
    endless(lm)
    rows = [prompt_ids(lm, request.text, a.new) for request in read_requests(a.data, a.rewrites)]
    unit = "cpu_s" if a.device == "cpu" else "wall_s"
    figures: dict[str, Any] = {
        "model": a.model, "dtype": a.dtype, "device": a.device, "threads": torch.get_num_threads(),
        "data": a.data.name if a.data else "made up", "rewrites": len(rows), "new": a.new, "ways": {},
    }  # fmt: skip
    own(lm, rows[:2], 2, 2)  # warm-up
    for size in a.batches:
        part, times = rows[:size], {way: float("inf") for way in WAYS}
        said = {}
        for _ in range(a.repeats):
            for way, run in WAYS.items():
                said[way], seconds = timed(lambda run=run, size=size: run(lm, rows, a.new, size), a.device)
                times[way] = min(times[way], seconds[unit])
        for way in WAYS:
            step = per_step(lm, way, part)
            tokens = len(rows) * a.new
            equal = sum(x == y for x, y in zip(said[way], said["kedit"], strict=True))
            figures["ways"][f"{way}, {size} rows"] = {
                **{f"{name}_per_step": n for name, n in step.items()},
                "operations_per_token": step["operations"] / len(part),
                unit: times[way],
                "tokens_per_s": tokens / times[way],
                "equal_texts": equal,
            }
            print(
                f"{way:13} {size:5} rows: {step['operations']:7.0f} operations and {step['waits']:.0f} waits a step, "
                f"{step['operations'] / len(part):8.1f} a token; {times[way]:8.2f} {unit}, "
                f"{tokens / times[way]:8.1f} tokens per s; {equal} of {len(rows)} texts as kedit's"
            )
    if a.alone:
        few = rows[: a.alone]
        _, seconds = timed(lambda: hugging_face(lm, few, a.new, 1), a.device)
        step = per_step(lm, "transformers", few[:1])
        figures["ways"]["transformers, one at a time"] = {
            **{f"{name}_per_step": n for name, n in step.items()},
            "operations_per_token": step["operations"],
            unit: seconds[unit] * len(rows) / len(few),
            "timed": len(few),
            "tokens_per_s": len(few) * a.new / seconds[unit],
        }
        print(f"transformers, one at a time: {len(few) * a.new / seconds[unit]:.1f} tokens per s")
    print(f"written to {save(a.save, figures)}")


if __name__ == "__main__":
    main()
