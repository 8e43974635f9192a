"""Measures which records of Facts a model knows: greedy decoding of the plain prompt, fp32, no chat template.

A record is known when the continuation, without leading space, starts with `target_true` and the word ends
there. `--write` replaces the fields `known` and `greedy` in the file; without it, only counts are shown.

    python benchmarks/facts/facts_known.py --model smollm2-135m --write
"""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from kedit.forward.binding import load_lm
from kedit.model.lm import LMConfig

log = logging.getLogger("facts_known")

DATA = Path(__file__).resolve().parents[2] / "kedit" / "data" / "readers" / "facts.jsonl"
NEW_TOKENS = 8


def knows(continuation: str, target: str) -> bool:
    """Whether a continuation begins with the target, the case as written, up to the end of a word."""
    return re.match(re.escape(target) + r"(?!\w)", continuation.lstrip()) is not None


@torch.inference_mode()
def greedy(model: Any, tokenizer: Any, prompts: list[str], batch_size: int) -> list[str]:
    """Greedy continuations of `NEW_TOKENS` tokens, stripped, from left-padded batches of similar length."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer([prompts[i] for i in rows], return_tensors="pt", padding=True).to(model.device)
        output = model.generate(
            **batch, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        new = output[:, batch["input_ids"].shape[1] :]  # [batch, <= NEW_TOKENS]
        for i, text in zip(rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            texts[i] = text.strip()
        log.info("%d of %d prompts", start + len(rows), len(prompts))
    return texts


def main() -> None:
    """Measures, reports, and writes if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="alias, local folder or hub id")
    parser.add_argument("--data", type=Path, default=DATA, help="file to measure; default: the package's")
    parser.add_argument("--batch-size", type=int, default=64, help="prompts per batch")
    parser.add_argument("--write", action="store_true", help="replace `known` and `greedy` in the file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    records = [json.loads(line) for line in args.data.read_text(encoding="utf-8").splitlines()]
    lm = load_lm(LMConfig(name=args.model, dtype="float32"))
    prompts = [record["prompt"].replace("{}", record["subject"]) for record in records]
    for record, text in zip(records, greedy(lm.model, lm.tokenizer, prompts, args.batch_size), strict=True):
        record["greedy"], record["known"] = text, knows(text, record["target_true"])
    for field in ("split", "relation"):
        total, known = Counter(r[field] for r in records), Counter(r[field] for r in records if r["known"])
        for name in sorted(total):
            log.info("%-24s %3d of %3d known", name, known[name], total[name])
    log.info("%-24s %3d of %3d known", "all", sum(r["known"] for r in records), len(records))
    if args.write:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        args.data.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
