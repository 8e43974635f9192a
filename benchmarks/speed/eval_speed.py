"""Time to score probes: one prompt at a time, as editing toolkits do, against `kedit.evaluation.score.score`.

    OMP_NUM_THREADS=1 python benchmarks/speed/eval_speed.py --data ../shared/data/rep_counterfact_valid.json
    python benchmarks/speed/eval_speed.py --model random:llama-7b --dtype bfloat16 --device cuda --save eval_speed_h200

Scored alike by both: every probe's answer and rival, teacher forced. Then the same with an edit of its own
for every record (lanes against writing the weights record by record), and greedy generation against
Hugging Face's.
On a shared CPU compare CPU seconds with one thread: threads that wait for a busy core burn CPU time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, save, speed_parser, timed
from kedit.data import read_facts, read_robust
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.evaluation.score import EvalConfig, score
from kedit.forward.greedy import greedy_ids
from kedit.forward.logits import default_batch_tokens
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from kedit.request import EditRecord, Probe


@torch.no_grad()
def one_by_one(lm: LM, probes: Sequence[Probe]) -> list[float]:
    """Mean -log p of every answer and rival: a forward pass for each, logits at every position."""
    nlls = []
    for probe in probes:
        for answer in (probe.answer, probe.rival):
            if answer is not None:
                tokens = encode(lm, probe.text, answer)
                logits = lm.model(torch.tensor([tokens.ids[:-1]], device=lm.device)).logits[0].float()
                at = logits.log_softmax(-1)[tokens.n_prompt - 1 :]
                target = torch.tensor(tokens.target, device=lm.device)
                nlls.append(-float(at.gather(1, target[:, None]).mean()))
    return nlls


def in_batches(lm: LM, probes: Sequence[Probe], batch_tokens: int | None, **lanes: Any) -> list[float]:
    """The same numbers from `score`."""
    scores = score(lm, probes, config=EvalConfig(batch_tokens, generate=[]), **lanes)
    return [nll for s in scores for nll in (s.nll_answer, s.nll_rival) if nll is not None]


def written(lm: LM, records: Sequence[EditRecord], deltas: Sequence[Delta]) -> list[float]:
    """Every record on its own edited model, weights written and restored, `score` of each."""
    nlls = []
    for record, delta in zip(records, deltas, strict=True):
        with edited(lm.model, delta):
            nlls += in_batches(lm, record.probes, None)
    return nlls


@torch.no_grad()
def hugging_face(lm: LM, rows: Sequence[tuple[int, ...]], new: int) -> list[list[int]]:
    """Greedy continuations, one `generate` call for each."""
    out = []
    for row in rows:
        ids = torch.tensor([row], device=lm.device)
        text = lm.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            pad_token_id=lm.pad_id,
        )
        out.append(text[0, len(row) :].tolist())
    return out


def random_deltas(lm: LM, n: int, layer: int) -> list[Delta]:
    """One small rank-1 edit per record."""
    out, width = lm.arch.module(lm.model, "mlp_out", layer), lm.d_model
    d_in = next(iter(out.parameters())).numel() // width
    rng = torch.Generator().manual_seed(0)
    shapes = ((width, 1), (1, d_in))
    return [
        Delta({lm.arch.path("mlp_out", layer): Factors(*(0.02 * torch.randn(s, generator=rng) for s in shapes))})
        for _ in range(n)
    ]


def main() -> None:
    """Run both ways and print and save the figures."""
    parser = speed_parser(__doc__, "kedit's own facts")
    parser.set_defaults(save="eval_speed_cpu")
    parser.add_argument("--records", type=int, default=10)
    parser.add_argument("--new", type=int, default=16, help="tokens generated per rewrite and paraphrase probe")
    parser.add_argument("--batch-tokens", type=int, nargs="*", default=[], help="other batch sizes to time")
    a = parser.parse_args()
    lm = get_lm(a.model, a.dtype, a.device)
    records = (read_robust(a.data) if a.data else read_facts("test"))[: a.records]
    probes = [probe for record in records for probe in record.probes]
    rows = [tuple(lm.encode(p.text)) for p in probes if p.kind in ("rewrite", "paraphrase")]
    deltas = random_deltas(lm, len(records), a.layer)
    lanes = [lane for lane, record in enumerate(records) for _ in record.probes]
    one_by_one(lm, probes[:2])  # warm-up
    in_batches(lm, probes, None)

    figures: dict[str, Any] = {
        "model": a.model, "dtype": a.dtype, "device": a.device, "threads": torch.get_num_threads(),
        "data": a.data.name if a.data else "Facts", "records": len(records), "probes": len(probes),
        "batch_tokens": default_batch_tokens(lm.device),
    }  # fmt: skip
    unit = "cpu_s" if a.device == "cpu" else "wall_s"

    def compare(name: str, slow: tuple[Any, dict[str, float]], fast: tuple[Any, dict[str, float]]) -> None:
        ratio = slow[1][unit] / fast[1][unit]
        figures[name] = {"slow": slow[1], "fast": fast[1], "ratio": ratio}
        per = [1000 * seconds[unit] / len(records) for _, seconds in (slow, fast)]
        print(f"{name}: {per[0]:.1f} -> {per[1]:.1f} {unit[:-2]} ms per record, {ratio:.2f} times as fast")

    slow, fast = (
        timed(lambda: one_by_one(lm, probes), a.device),
        timed(lambda: in_batches(lm, probes, None), a.device),
    )
    compare("unedited", slow, fast)
    figures["unedited"]["max_difference"] = _difference(slow[0], fast[0])
    slow = timed(lambda: written(lm, records, deltas), a.device)
    fast = timed(lambda: in_batches(lm, probes, None, lanes=lanes, bank=BatchedDeltas(lm.model, deltas)), a.device)
    compare("edited", slow, fast)
    figures["edited"]["max_difference"] = _difference(slow[0], fast[0])
    slow = timed(lambda: hugging_face(lm, rows, a.new), a.device)
    fast = timed(lambda: greedy_ids(lm, rows, a.new), a.device)
    compare("generated", slow, fast)
    figures["generated"] |= {
        "rows": len(rows),
        "equal": sum(x == y for x, y in zip(slow[0], fast[0], strict=True)),
    }
    for tokens in a.batch_tokens:
        _, seconds = timed(lambda tokens=tokens: in_batches(lm, probes, tokens), a.device)
        figures.setdefault("by_batch_tokens", {})[str(tokens)] = seconds
    print(f"written to {save(a.save, figures)}")


def _difference(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


if __name__ == "__main__":
    main()
