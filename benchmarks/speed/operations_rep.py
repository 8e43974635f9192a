"""Operations that REP's adapters, banks of gates and lanes hand to the device, the host's waits, and CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/speed/operations_rep.py --data ../shared/data/rep_counterfact_valid.json

Counts do not depend on the machine: where a GPU waits for launches, they are its time. Counted are (a) one training
step of the adapters of some lanes, Adam and the log with it; (b) what follows the steps, per phase of all lanes: the
gates' fits and calibration, the closed form; with (k) reading the keys; (c) a forward pass with a bank of gates in one
layer, above the pass without; (d) the same for the hooks of lanes, of ROME's and MEMIT's changes and of adapters.
A saved file keeps the columns of other code states (`--as before`).
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import ROOT, get_lm, read_requests, save, speed_parser, timed
from benchmarks.speed.dispatched import Dispatched
from benchmarks.speed.rep_speed import corpus_of, edit, read
from kedit.data import read_facts, read_robust
from kedit.data.robust_queries import QueryConfig, with_variants
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.pathway import Pathway
from kedit.delta.pathways import Pathways
from kedit.methods.rep import AdapterConfig, AdapterTask, AdapterTrainer, KeySource, closed_form
from kedit.methods.rep.adapter_phase import AdapterPhase
from kedit.model.lm import LM
from kedit.request import EditRecord


def counted(run: Callable[[], Any]) -> dict[str, float]:
    """Operations and waits of `run`, and its CPU seconds when nothing counts."""
    with Dispatched() as seen:
        run()
    cpu_s = min(timed(run, "cpu")[1]["cpu_s"] for _ in range(1 if seen.n > 5000 else 3))
    return {"operations": seen.n, "waits": seen.waits.total(), "cpu_s": cpu_s}


def adapters(tasks: Sequence[AdapterTask], config: AdapterConfig, phase_too: bool) -> dict[str, Any]:
    """(a) and (b) for some lanes; (a) alone where `phase_too` is false."""
    phase = AdapterPhase(AdapterTrainer(tasks, config))
    optimizer = phase.optimizer()

    def step() -> None:
        optimizer.zero_grad()
        phase.loss().backward()
        optimizer.step()
        phase.logs()

    for _ in range(3):  # what the first step alone does
        step()
    found: dict[str, Any] = {"step": counted(step)}
    found["step"]["waits"] -= counted(optimizer.step)["waits"]  # Adam's counters are on the host
    with as_on_a_device():
        found["after_the_steps_as_on_a_device"] = counted(phase.lanes.pathways)
    if phase_too:
        found["after_the_steps"] = counted(phase.lanes.pathways)
    if phase_too and config.gate != "mlp":
        found["closed_form"] = counted(lambda: closed_form(tasks, config))
    return found


def above(run: Callable[[], Any], plain: dict[str, float]) -> dict[str, float]:
    """What `run` has more than a plain forward pass."""
    inside = counted(run)
    return {name: inside[name] - plain[name] for name in ("operations", "waits")} | {
        "forward_with_over_without": inside["cpu_s"] / plain["cpu_s"]
    }


@torch.no_grad()
def banks(lm: LM, layer: int, ids: Tensor, found: Sequence[Pathway], device_way: bool) -> dict[str, Any]:
    """(c): a bank in one layer; `device_way`: as on a device whose host would have to wait."""
    run = lambda: lm.model.base_model(input_ids=ids, use_cache=False)  # noqa: E731
    run()
    plain = counted(run)
    figures: dict[str, Any] = {
        "tokens": ids.numel(),
        "operations_of_a_layer": round(plain["operations"] / lm.arch.n_layers, 1),
    }
    kinds = {"hysteresis": list(found), "plain": [replace(p, hysteresis=None) for p in found]}
    for kind, some in kinds.items():
        for count in (1, 16, 256):
            bank = Delta({lm.arch.path("mlp_out", layer): Pathways(tuple(islice(cycle(some), count)))})
            with as_on_a_device(device_way), edited(lm.model, bank):
                figures[f"{kind}_{count}"] = above(run, plain)
    return figures


def as_on_a_device(device_way: bool = True) -> Any:
    """Takes the ways of a device whose host would have to wait; nothing where this code state has no such ways."""
    there = find_spec("kedit.delta.waits") is not None
    return patch("kedit.delta.waits.waiting_costs", lambda _: True) if device_way and there else nullcontext()


@torch.no_grad()
def lanes(lm: LM, deltas: dict[str, list[Delta]], ids: Tensor) -> dict[str, Any]:
    """(d): scoring forward passes of 1, 4 and 16 lanes, and making the lanes."""
    figures: dict[str, Any] = {}
    for kind, own in deltas.items():
        for n in (1, 4, 16):
            rows = ids[:1].expand(n, -1)
            of_rows = torch.arange(n)
            run = lambda rows=rows: lm.model.base_model(input_ids=rows, use_cache=False)  # noqa: E731
            run()
            plain = counted(run)
            made = counted(lambda own=own, n=n: BatchedDeltas(lm.model, own[:n]))
            bank = BatchedDeltas(lm.model, own[:n])
            with bank.rows(of_rows):
                inside = above(run, plain)

            def entered(bank: BatchedDeltas = bank, of_rows: Tensor = of_rows) -> None:
                with bank.rows(of_rows):
                    pass

            figures[f"{kind}_{n}"] = {"forward": inside, "rows": counted(entered), "made": made}
    return figures


def main() -> None:
    """Count everything, print it and save it."""
    parser = speed_parser(__doc__, "made-up requests")
    parser.add_argument("--phases", type=int, nargs="+", default=[1, 4, 16], help="lanes of (b) and (k)")
    parser.add_argument("--parts", nargs="+", default=["adapters", "banks", "lanes"], help="what is counted")
    parser.add_argument("--as", dest="state", default="after", help="name of this code state in the file")
    a = parser.parse_args()
    torch.manual_seed(0)
    lm, most = get_lm(a.model, a.dtype, a.device), 16
    if a.data:
        records = read_robust(a.data)[:most]
    else:
        records = [EditRecord(request, ()) for request in read_requests(None, most)]
    queries = QueryConfig(long_words=[], long_tokens=[400], long_contexts=0, train_long=1)
    with tempfile.TemporaryDirectory() as folder:
        text = corpus_of(records, folder)
        records = with_variants(lm, records, replace(queries, corpus=str(text)))
        ids = torch.tensor(lm.encode(text.read_text(encoding="utf-8")[:200_000]))
    config, templates = AdapterConfig(), ["{}", "The meeting was long. {}", "Because of rain. {}"]
    subjects = [record.request.named() for record in [*records, *read_facts("train")]]
    source = KeySource(lm, config, templates, len(templates), subjects, ids[: config.corpus_tokens])
    rome = [delta for record in records for delta in edit(lm, [record], templates, a.layer, 1)]
    read(source, records[:1], a.layer, rome[:1])
    tasks = [task for record, d in zip(records, rome, strict=True) for task in read(source, [record], a.layer, [d])]
    figures: dict[str, Any] = {}
    for n in (1, 4, 16) if "adapters" in a.parts else ():
        phase_too = n in a.phases
        figures[f"lanes_{n}"] = adapters(tasks[:n], config, phase_too)
        figures[f"lanes_{n}"]["mlp_gate"] = adapters(tasks[:n], replace(config, gate="mlp", dropout=0.1), phase_too)
        if phase_too:
            figures[f"lanes_{n}"]["keys"] = counted(lambda n=n: read(source, records[:n], a.layer, rome[:n]))
        print(n, json.dumps(figures[f"lanes_{n}"]))
    pathways = [p for start in range(0, most, 4) for p in AdapterTrainer(tasks[start : start + 4], config).pathways()]
    asked = torch.tensor(lm.encode(" ".join(record.request.text for record in records)))
    batch = asked.repeat(-(-512 // len(asked)))[:512].view(4, 128)  # gates open here
    for name, way in (("bank", False), ("bank_as_on_a_device", True)) if "banks" in a.parts else ():
        figures[name] = banks(lm, a.layer, batch, pathways, way)
        print(name, json.dumps(figures[name]))
    (change,) = rome[0].of_kind(Factors).values()
    wide = {lm.arch.path("mlp_out", i): change for i in range(a.layer - 4, a.layer + 1)}
    path = lm.arch.path("mlp_out", a.layer)
    of_kind = {
        "rome": rome[:16],
        "memit": [Delta(dict(wide)) for _ in range(16)],
        "rep": [d.with_changes({path: Pathways((p,))}) for d, p in zip(rome, pathways, strict=False)],
    }
    for name, way in (("lanes", False), ("lanes_as_on_a_device", True)) if "lanes" in a.parts else ():
        with as_on_a_device(way):
            figures[name] = lanes(lm, of_kind, batch[:1, :64])
        print(name, json.dumps(figures[name]))
    name = a.save or "operations_rep_cpu"
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    kept = json.loads(file.read_text(encoding="utf-8"))["states"] if file.exists() else {}
    settings = {key: value for key, value in vars(a).items() if key != "state"}
    states = kept | {a.state: kept.get(a.state, {}) | rounded(figures)}
    print("saved", save(name, {"settings": settings, "states": states}).name)


def rounded(value: Any) -> Any:
    """Figures with four digits of what is not a count."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
