"""Time to score probes: one prompt at a time, as editing toolkits do, against `kedit.evaluation.score.score`.

    OMP_NUM_THREADS=1 python benchmarks/speed/eval_speed.py --data ../shared/data/rep_counterfact_valid.json
    python benchmarks/speed/eval_speed.py --model random:llama-7b --dtype bfloat16 --device cuda --save eval_speed_h200

Scored alike by both, in turns (`--rounds`): every probe's answer and rival, teacher forced; choices among four letters;
free answers up to a natural stop in three contexts, against Hugging Face's `generate` that stops as early. Then every
record with an edit of its own (lanes against writing the weights record by record), and plain greedy generation.
On a shared CPU compare CPU seconds with one thread: threads that wait for a busy core burn CPU time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, save, speed_parser, timed
from kedit.data import read_facts, read_robust
from kedit.data.derived import with_derived
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.evaluation.score import EvalConfig, score
from kedit.evaluation.wild import CONTEXTS, QA, STOP, TOKENS, asking, wild_answers
from kedit.forward.greedy import greedy_ids
from kedit.forward.logits import default_batch_tokens
from kedit.model.chat import REPEAT
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from kedit.request import EditRecord, Probe
from kedit.text.matching import after_prompt


@torch.no_grad()
def one_by_one(lm: LM, probes: Sequence[Probe]) -> list[float]:
    """Mean -log p of every answer and rival: a forward pass for each, logits at every position."""
    nlls = []
    for probe in probes:
        for answer in probe.options or (probe.answer, probe.rival):
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
    return [nll for s in scores for nll in s.nll_options or (s.nll_answer, s.nll_rival) if nll is not None]


class _Stop(StoppingCriteria):
    """Ends a text at one of some characters in its last token."""

    def __init__(self, lm: LM, stop: str) -> None:
        self._lm, self._stop = lm, stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> bool:
        text = self._lm.decode(input_ids[0, -1:].tolist())
        return any(c in text for c in self._stop)


@torch.no_grad()
def answers_one_by_one(lm: LM, probes: Sequence[Probe]) -> list[str]:
    """Free answers in all contexts, one `generate` call for each, which stops where kedit stops."""
    texts = []
    for context in CONTEXTS:
        asked = asking(lm, context)
        for probe in probes:
            prompt = QA.replace("{}", probe.text) if context == "qa" else probe.text
            stop = STOP if asked.chat is None else "".join(c for c in STOP if c not in probe.text)
            row = encode(asked, prompt).ids
            ids = torch.tensor([row], device=lm.device)
            out = lm.model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=TOKENS + (0 if asked.chat is None else REPEAT),
                eos_token_id=[i for i in (lm.eos_id, asked.end_id) if i is not None],
                pad_token_id=lm.pad_id,
                stopping_criteria=StoppingCriteriaList([_Stop(lm, stop)]),
            )[0].tolist()
            head, text = (lm.tokenizer.decode(part, skip_special_tokens=True) for part in (row, out))
            text = text[len(head) :]
            text = text if asked.chat is None else after_prompt(text, probe.text)
            texts.append(text[: min((text.find(c) for c in STOP if c in text), default=len(text))])
    return texts


def answers_in_batches(lm: LM, probes: Sequence[Probe]) -> list[str]:
    """The same from `wild_answers`."""
    found = wild_answers(lm, probes, [1] * len(probes), [-1] * len(probes), contexts=CONTEXTS)
    return [said.text for context in CONTEXTS for said in found[context]]


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


def in_turns(a: Any, slow: Callable[[], Any], fast: Callable[[], Any]) -> list[tuple[Any, dict[str, float]]]:
    """Both ways in turns; what each returned, and its seconds of all rounds."""
    found: list[tuple[Any, dict[str, float]]] = [(None, {}), (None, {})]
    for _ in range(a.rounds):
        for i, run in enumerate((slow, fast)):
            result, seconds = timed(run, a.device)
            found[i] = result, {key: found[i][1].get(key, 0.0) + value for key, value in seconds.items()}
    return found


def main() -> None:
    """Run both ways and print and save the figures."""
    parser = speed_parser(__doc__, "kedit's own facts")
    parser.set_defaults(save="eval_speed_cpu")
    parser.add_argument("--records", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1, help="times that both ways take turns")
    parser.add_argument("--new", type=int, default=16, help="tokens generated per rewrite and paraphrase probe")
    parser.add_argument("--batch-tokens", type=int, nargs="*", default=[], help="other batch sizes to time")
    a = parser.parse_args()
    lm = get_lm(a.model, a.dtype, a.device)
    everything = read_robust(a.data) if a.data else read_facts("test")
    records = everything[: a.records]
    plain = [EditRecord(record.request, ()) for record in records]
    choices = [probe for record in with_derived(lm, plain, everything, ["choice"]) for probe in record.probes]
    probes = [probe for record in records for probe in record.probes]
    free = [probe for probe in probes if probe.kind in ("rewrite", "paraphrase")]
    rows = [tuple(lm.encode(probe.text)) for probe in free]
    deltas = random_deltas(lm, len(records), a.layer)
    lanes = [lane for lane, record in enumerate(records) for _ in record.probes]
    one_by_one(lm, probes[:2])  # warm-up
    in_batches(lm, probes[:50], None)

    figures: dict[str, Any] = {
        "model": a.model, "dtype": a.dtype, "device": a.device, "threads": torch.get_num_threads(),
        "data": a.data.name if a.data else "Facts", "records": len(records), "probes": len(probes),
        "rounds": a.rounds,
        "batch_tokens": default_batch_tokens(lm.device),
    }  # fmt: skip
    unit = "cpu_s" if a.device == "cpu" else "wall_s"

    def compare(name: str, slow: tuple[Any, dict[str, float]], fast: tuple[Any, dict[str, float]]) -> None:
        ratio = slow[1][unit] / fast[1][unit]
        figures[name] = {"slow": slow[1], "fast": fast[1], "ratio": ratio}
        per = [1000 * seconds[unit] / len(records) for _, seconds in (slow, fast)]
        print(f"{name}: {per[0]:.1f} -> {per[1]:.1f} {unit[:-2]} ms per record, {ratio:.2f} times as fast")

    slow, fast = in_turns(a, lambda: one_by_one(lm, probes), lambda: in_batches(lm, probes, None))
    compare("unedited", slow, fast)
    figures["unedited"]["max_difference"] = _difference(slow[0], fast[0])
    slow, fast = in_turns(a, lambda: one_by_one(lm, choices), lambda: in_batches(lm, choices, None))
    compare("choice", slow, fast)
    figures["choice"] |= {"probes": len(choices), "max_difference": _difference(slow[0], fast[0])}
    slow, fast = in_turns(a, lambda: answers_one_by_one(lm, free), lambda: answers_in_batches(lm, free))
    compare("wild", slow, fast)
    figures["wild"] |= {"answers": len(slow[0]), "equal": sum(x == y for x, y in zip(slow[0], fast[0], strict=True))}
    parts = [figures[name] for name in ("unedited", "choice", "wild")]
    total = [sum(part[way][unit] for part in parts) for way in ("slow", "fast")]
    figures["all"] = {"slow": {unit: total[0]}, "fast": {unit: total[1]}, "ratio": total[0] / total[1]}
    print(f"all of these: {total[0]:.1f} -> {total[1]:.1f} {unit}, {total[0] / total[1]:.2f} times as fast")
    bank = BatchedDeltas(lm.model, deltas)
    slow, fast = in_turns(
        a, lambda: written(lm, records, deltas), lambda: in_batches(lm, probes, None, lanes=lanes, bank=bank)
    )
    compare("edited", slow, fast)
    figures["edited"]["max_difference"] = _difference(slow[0], fast[0])
    slow, fast = in_turns(a, lambda: hugging_face(lm, rows, a.new), lambda: greedy_ids(lm, rows, a.new))
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
