"""Time of REP beside the editor: v* and adapter per edit, cached keys against running the model, and a token's cost.

    OMP_NUM_THREADS=1 python benchmarks/speed/rep_speed.py --data ../shared/data/rep_counterfact_valid.json
    python benchmarks/speed/rep_speed.py --model random:llama-7b --dtype bfloat16 --device cuda --lanes 32

Per edit: (a) v* of ROME (21 contexts, replay and lanes as shipped); (b) reading the adapter's keys; (c) training the
adapter on them with the default options; (d) the closed form; (e) the paper's mlp gate; (f) as (c), but the model is
run up to the edited layer for the samples of every step. In (f) equal beginnings are run once, the model stops at the
layer and no gradient passes it, so it is the fastest such loop; the final fit of the gate gets its keys for nothing.
(c) and (f) train on the same samples: their adapters differ by rounding, which Adam enlarges (in half precision much).
Then the forward pass of a text with banks of pathways. u is the mean key, not whitened: it costs the same.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, peak_rss_gib, read_requests, save, speed_parser, timed
from benchmarks.speed.edit_speed import CLAMP, LR, TERMS, contexts
from benchmarks.speed.rep_uncached import Uncached, difference, rounding, train
from kedit.data import read_facts, read_robust
from kedit.data.robust_queries import QueryConfig, with_variants
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.pathway import Pathway, PathwayRouter
from kedit.forward.replay import Site
from kedit.keyvalue import ValueObjective, ValueOptimization, optimise
from kedit.methods.rep import AdapterConfig, AdapterTask, AdapterTrainer, KeySource, closed_form
from kedit.methods.rep.keys import read_keys
from kedit.model.lm import LM
from kedit.request import EditRecord


def corpus_of(records: Sequence[EditRecord], folder: str) -> Path:
    """A text for long contexts and ordinary keys where none is given: kedit's facts and the records' own prompts."""
    lines = [probe.text for record in [*read_facts("train"), *records] for probe in record.probes]
    path = Path(folder) / "corpus.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def edit(lm: LM, records: Sequence[EditRecord], templates: Sequence[str], layer: int, steps: int) -> list[Delta]:
    """(a): v* of a group of lanes, and the deltas that the adapters need."""
    objective = ValueObjective(lm, [record.request for record in records], templates, [Site("mlp", layer)], TERMS)
    v_star = optimise(ValueOptimization(objective, clamp_norm_factor=CLAMP), lr=LR, steps=steps)
    keys, values = objective.keys_and_values()
    deltas = []
    for k, v, wanted in zip(keys, values, v_star, strict=True):
        u = k.mean(0) / k.mean(0).norm()
        left = (wanted - v[0]) / (k[0] @ u)
        deltas.append(Delta({lm.arch.path("mlp_out", layer): Factors(left[:, None], u[None])}))
    return deltas


def read(source: KeySource, records: Sequence[EditRecord], layer: int, deltas: Sequence[Delta]) -> list[AdapterTask]:
    """(b): the keys of a group of lanes."""
    path = source.lm.arch.path("mlp_out", layer)
    directions = torch.stack([delta.of_kind(Factors)[path].right[0] for delta in deltas])
    bank = BatchedDeltas(source.lm.model, deltas)
    return source.tasks(records, layer, directions, lambda keys: keys[0], bank, range(len(records)))


@torch.no_grad()
def bank_costs(
    lm: LM, layer: int, ids: Tensor, pathways: dict[str, list[Pathway]], counts: Sequence[int], repeats: int, unit: str
) -> dict[str, Any]:
    """Seconds per token of the model's layers, and of a bank of pathways at one of them."""
    device = "cpu" if lm.device.type == "cpu" else "cuda"
    module, n = lm.arch.module(lm.model, "mlp_out", layer), ids.numel()
    keys = torch.stack(read_keys(lm, [tuple(row) for row in ids.tolist()], module, None, [-1] * len(ids))).to(lm.dtype)

    def best(run: Any) -> float:
        return min(timed(run, device)[1][unit] for _ in range(repeats)) / n

    def forward() -> Any:
        return lm.model.base_model(input_ids=ids, use_cache=False)

    plain = best(forward)
    figures: dict[str, Any] = {"tokens": n, "forward_us_per_token": 1e6 * plain}
    for gate, found in pathways.items():
        for count in counts:
            bank = PathwayRouter(list(islice(cycle(found), count)))
            handles = bank.install(module)
            try:
                inside = best(forward)
            finally:
                for handle in handles:
                    handle.remove()
            alone = best(lambda bank=bank: bank(keys))
            figures[f"{gate}_{count}"] = {
                "us_per_token": 1e6 * alone,
                "relative_to_forward": alone / plain,
                "forward_with_over_without": inside / plain,
                "open": float((bank.margins(keys.flatten(0, 1).float()).max(-1).values > 0).float().mean()),
            }
    return figures


def main() -> None:
    """Time everything, print it and save it."""
    parser = speed_parser(__doc__, "made-up requests")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--text", type=Path, help="ordinary text; kedit's facts and the data's prompts without it")
    parser.add_argument("--evaluations", type=int, default=25, help="most evaluations of v*'s loss")
    parser.add_argument("--steps", type=int, help="steps of the adapter; its default without it")
    parser.add_argument("--lanes", type=int, default=4, help="edits side by side")
    parser.add_argument("--slow", type=int, help="requests of (f), where all would take too long")
    parser.add_argument("--banks", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--batch", type=int, nargs=2, default=[4, 128], help="rows and tokens of the text")
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    lm, unit = get_lm(a.model, a.dtype, a.device), "cpu_s" if a.device == "cpu" else "wall_s"
    if a.data:
        records = read_robust(a.data)[: a.requests]
    else:
        records = [EditRecord(request, ()) for request in read_requests(None, a.requests)]
    queries = QueryConfig(long_words=[], long_tokens=[400], long_contexts=0, train_long=1)
    with tempfile.TemporaryDirectory() as folder:
        text = a.text or corpus_of(records, folder)
        records = with_variants(lm, records, replace(queries, corpus=str(text)))
        ids = torch.tensor(lm.encode(text.read_text(encoding="utf-8")[:200_000]))
    shipped = AdapterConfig() if a.steps is None else AdapterConfig(steps=a.steps)
    templates, n_slow = contexts(10, 10), min(a.slow or len(records), len(records))
    subjects = [record.request.named() for record in [*records, *read_facts("train")]]
    source = KeySource(lm, shipped, templates, len(templates), subjects, ids[: shipped.corpus_tokens])
    _, shared = timed(lambda: source._shared_keys(a.layer, lm.arch.module(lm.model, "mlp_out", a.layer)), a.device)
    groups = [records[start : start + a.lanes] for start in range(0, len(records), a.lanes)]
    warm = edit(lm, records[:1], templates, a.layer, 2)
    train(AdapterTrainer(read(source, records[:1], a.layer, warm), replace(shipped, steps=2)))

    figures: dict[str, dict[str, Any]] = {}
    made: dict[str, list[Any]] = {"a_v_star": [], "b_keys": [], "c_trained": [], "rounding": []}

    def clock(name: str, group: Sequence[EditRecord], run: Any) -> Any:
        torch.manual_seed(0)
        result, seconds = timed(run, a.device)
        entry = figures.setdefault(name, {"edits": 0, "cpu_s": 0.0, "wall_s": 0.0})
        entry["edits"] += len(group)
        for key, value in seconds.items():
            entry[key] = entry[key] + value if key.endswith("_s") else max(entry.get(key, 0.0), value)
        made.setdefault(name, []).extend(result)
        return result

    mlp, done = replace(shipped, gate="mlp"), 0
    for group in groups:
        deltas = clock("a_v_star", group, lambda g=group: edit(lm, g, templates, a.layer, a.evaluations))
        tasks = clock("b_keys", group, lambda g=group, d=deltas: read(source, g, a.layer, d))
        clock("c_trained", group, lambda t=tasks: train(AdapterTrainer(t, shipped)))
        clock("d_closed_form", group, lambda t=tasks: closed_form(t, shipped))
        clock("e_mlp_gate", group, lambda t=tasks: train(AdapterTrainer(t, mlp)))
        if done < n_slow:
            bank = BatchedDeltas(lm.model, deltas)
            run = (tasks, shipped, source, group, a.layer, bank)
            clock("f_model_every_step", group, lambda r=run: train(Uncached(*r)))
            made["rounding"].append(rounding(tasks, shipped))
            done += len(group)
    for name, entry in figures.items():
        for key in ("cpu_s", "wall_s"):
            entry[f"{key}_per_edit"] = entry.pop(key) / entry["edits"]
        print(name, {key: round(value, 6) for key, value in entry.items()})
    cost = {name.partition("_")[0]: entry[f"{unit}_per_edit"] for name, entry in figures.items()}
    gap = difference(made["c_trained"][:done], made["f_model_every_step"])
    ratios = {
        "c/a": cost["c"] / cost["a"],
        "(b+c)/a": (cost["b"] + cost["c"]) / cost["a"],
        "(b+d)/a": (cost["b"] + cost["d"]) / cost["a"],
        "f/c": cost["f"] / cost["c"],
        "f/(b+c)": cost["f"] / (cost["b"] + cost["c"]),
    }
    print("ratios", {name: round(value, 3) for name, value in ratios.items()})
    noise = {kind: max(one[kind] for one in made["rounding"]) for kind in gap}
    verdict = "the same" if gap["relative"] < 1e-4 else "NOT the same within 1e-4"
    print(f"c and f end with adapters that differ by {gap['relative']:.1e} of their largest number: {verdict}")
    print(f"(keys off by 1e-7 make a difference of {noise['relative']:.1e})")
    rows, length = a.batch
    batch = ids.repeat(-(-rows * length // len(ids)))[: rows * length].view(rows, length).to(lm.device)
    pathways = {"logistic": made["c_trained"], "mlp": made["e_mlp_gate"]}
    banks = bank_costs(lm, a.layer, batch, pathways, a.banks, a.repeats, unit)
    for name, entry in banks.items():
        print(name, entry)
    found: dict[str, Any] = {
        "settings": vars(a)
        | {"threads": torch.get_num_threads(), "positives": [len(t.positives) for t in made["b_keys"]]},
        "unit_of_ratios": unit,
        "once_per_run_shared_keys": shared,
        "figures": figures,
        "ratios": ratios,
        "adapter_difference_c_f": gap | {"edits": done, "of_keys_off_by_1e-7": noise},
        "banks": banks,
        "peak_rss_gib": peak_rss_gib(),
    }
    print("saved", save(a.save or f"rep_speed_{a.device}", found).name)


if __name__ == "__main__":
    main()
