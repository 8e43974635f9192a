"""What C, and edits made with it, lose by products, sums and files of lower precision.

    OMP_NUM_THREADS=1 python benchmarks/stats_precision.py --text ../shared/data/wikitext2_valid.txt \
        --data ../shared/data/rep_counterfact_valid.json

The keys of one layer are taken once, of the model in bfloat16 and in float32; every way of adding them up is held
against float64. A tensor core's arithmetic is imitated: TF32 rounds what it multiplies to 10 bits of fraction, and
its sums are float32's. Shown are the relative error (Frobenius) of C, of ROME's directions C^-1 k of the requests'
subjects, one by one (the largest), and of MEMIT's X = (lambda C + K K^T)^-1 K of all of them, which its delta is
proportional to.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, read_requests, save
from benchmarks.speed.stats_speed import tokens_of
from kedit.covariance import Covariance, woodbury
from kedit.covariance.moments import SecondMoment
from kedit.errors import KeditError
from kedit.forward.activations import read, reading
from kedit.forward.logits import frozen
from kedit.model.lm import LM
from kedit.model.tokenization import encode_subject
from kedit.request import EditRequest

LAMBDA = 15_000.0  # MEMIT's


def keys_of_text(lm: LM, ids: Tensor, layer: int, batch: int = 4096, length: int = 256) -> list[Tensor]:
    """Keys of the text, batch by batch, in the model's dtype."""
    found: list[Tensor] = []
    module = lm.arch.module(lm.model, "mlp_out", layer)
    for chunk in ids[: len(ids) // length * length].view(-1, length).split(batch // length):
        with frozen(lm.model), reading({module: lambda keys: found.append(keys.flatten(0, -2).clone())}):
            lm.model(input_ids=chunk, use_cache=False)
    return found


def keys_of_subjects(lm: LM, requests: list[EditRequest], layer: int) -> Tensor:
    """K `[d_in, n]` at the subjects' last tokens, float64."""
    places = [encode_subject(lm, r.prompt, r.named(), r.target_new) for r in requests]
    rows = {(-1, tuple(p.ids[: p.subject_last + 1])): None for p in places}
    columns = []
    for part, states in read(lm, rows, lm.arch.module(lm.model, "mlp_out", layer)):
        columns += [states[i, len(tokens) - 1].double() for i, (_, tokens) in enumerate(part)]
    return torch.stack(columns, 1)


def rounded(keys: Tensor, bits: int) -> Tensor:
    """float32 `keys` with `bits` bits of fraction, to nearest even."""
    drop = 23 - bits
    raw = keys.float().contiguous().view(torch.int32)
    raw = raw + ((1 << (drop - 1)) - 1) + ((raw >> drop) & 1)
    return (raw >> drop << drop).view(torch.float32)


def summed(batches: list[Tensor], dtype: torch.dtype) -> Tensor:
    """C as `SecondMoment` adds it up."""
    moment = SecondMoment(batches[0].shape[1], dtype, torch.device("cpu"))
    for batch in batches:
        moment.add(batch)
    return moment.mean()


def products_rounded(batches: list[Tensor]) -> Tensor:
    """C from products that leave the device in bfloat16, a batch at a time, added up in float32."""
    total = sum((batch.float().T @ batch.float()).bfloat16().float() for batch in batches)
    return total / sum(map(len, batches))  # type: ignore[operator]


def scaled(c: Tensor) -> Tensor:
    """C with its correlations in bfloat16 and its diagonal in float32."""
    root = c.diagonal().sqrt()
    return (c / root / root[:, None]).bfloat16().float().fill_diagonal_(1) * root * root[:, None]


def errors(c: Tensor, exact: Tensor, count: int, keys: Tensor) -> dict[str, float | str]:
    """Relative errors of C and of what is solved with it; why it cannot be solved, where it cannot."""
    found: dict[str, float | str] = {"C": float((c.double() - exact).norm() / exact.norm())}
    true = Covariance(exact, count)
    own = Covariance(c, count)
    try:
        own.factor  # noqa: B018
    except KeditError as error:
        return found | {"rome": str(error)[:60], "memit": "-"}
    a, b = true.solve(keys.T), own.solve(keys.T)
    found["rome"] = float(((a - b).norm(dim=1) / a.norm(dim=1)).max())
    a, b = woodbury(true, keys, LAMBDA), woodbury(own, keys, LAMBDA)
    return found | {"memit": float((a - b).norm() / a.norm())}


def main() -> None:
    """Take the keys, add them up, compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--text", type=Path, help="a text file; without it, random tokens")
    parser.add_argument("--data", type=Path, help="a robust-query file; made-up facts without it")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--save", default="stats_precision_smollm2")
    a = parser.parse_args()
    figures: dict[str, Any] = {"model": a.model, "layer": a.layer, "tokens": a.tokens, "errors": {}}
    for dtype in ("bfloat16", "float32"):
        lm = get_lm(a.model, dtype, "cpu")
        batches = keys_of_text(lm, tokens_of(lm, a.text, a.tokens), a.layer)
        keys = keys_of_subjects(lm, read_requests(a.data, a.requests), a.layer)
        exact, count = summed(batches, torch.float64), sum(map(len, batches))
        whole = exact.float()
        single = summed(batches, torch.float32)
        ways = {"float32 products and sums": single}
        if dtype == "bfloat16":
            same = all(torch.equal(rounded(batch, 10), batch.float()) for batch in batches)
            figures["TF32 holds bfloat16 keys exactly"] = same
            ways["four batches in one"] = summed(
                [torch.cat(batches[i : i + 4]) for i in range(0, len(batches), 4)], torch.float32
            )
            ways["products given in bfloat16"] = products_rounded(batches)
        else:
            ways["keys rounded to TF32"] = summed([rounded(batch, 10) for batch in batches], torch.float32)
            ways["keys rounded to bfloat16"] = summed([batch.bfloat16() for batch in batches], torch.float32)
            ways["kept in bfloat16"] = whole.bfloat16().float()
            ways["kept as bfloat16 correlations"] = scaled(whole)
        for name, c in ways.items():
            found = errors(c, exact, count, keys)
            figures["errors"][f"{dtype} keys, {name}"] = found
            print(
                f"{dtype:9} keys, {name:30}",
                *(f"{k} {v:.2e}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()),
            )
    print(f"written to {save(a.save, figures)}")


if __name__ == "__main__":
    main()
