"""UltraEdit in a sequence of edit batches: edits per CPU second, and how often the target is the argmax.

    OMP_NUM_THREADS=1 python benchmarks/speed/ultraedit_speed.py --data ../shared/data/counterfact_edit.json

Every setting edits the same requests, one edit batch after another, in a fresh copy of the weights: passes, statistics,
closed forms and writing are timed, measuring is not. `first` counts the requests of the first edit batch after the last
one, `all` all requests, `neighbours` the prompts of other facts whose argmax is still that of the unedited model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

import torch

from benchmarks.common import get_lm, peak_rss_gib, save, speed_parser, timed
from kedit.data import read_counterfact
from kedit.delta.apply import Weights
from kedit.forward.teacher_forcing import Span, read
from kedit.methods import UltraEdit
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.edit_config import EditConfig
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from kedit.request import EditRecord

PLACES: dict[str, dict[str, Any]] = {
    "by depth": {},
    "gate and up at 0.64 to 0.93": {"gate_layers": range(19, 29), "up_layers": range(19, 29), "down_layers": ()},
    "down at 0.64 to 0.93": {"gate_layers": (), "up_layers": (), "down_layers": range(19, 29)},
}


def argmaxes(lm: LM, pairs: Sequence[tuple[str, str]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What the model says at the places of some answers after their prompts, and the answers' tokens."""
    texts = [encode(lm, prompt, answer) for prompt, answer in pairs]
    found = read(lm, [Span(-1, t.ids[:-1], t.target) for t in texts])
    return [(top, t.target) for (_, top), t in zip(found, texts, strict=True)]


def share(said: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> float:
    """How many were said."""
    return sum(top == target for top, target in said) / len(said)


def edit(lm: LM, weights: Weights, module: UltraEdit, index: int, records: list[EditRecord]) -> None:
    """One edit batch, as Lightning would drive it."""
    program = module.edit(EditBatch.of(index, records))
    while True:
        try:
            phase = next(program)
        except StopIteration as end:
            (delta,) = end.value
            weights.add(delta)
            return
        loss = phase.loss()
        assert loss is not None
        loss.backward()


def measure(lm: LM, records: list[EditRecord], size: int, place: dict[str, Any], eta: float) -> dict[str, Any]:
    """Figures of one setting."""
    layers: dict[str, Any] = {name: list(own) for name, own in place.items()}
    module = UltraEdit(eta=eta, **layers).configure(edit=EditConfig("sequential"))
    module.use_lm(lm)
    module.choose_modules()
    module.start()
    asked = [(record.request.text, record.request.target_new) for record in records]
    others = [(p.text, p.answer) for record in records for p in record.probes if p.kind == "neighborhood"]
    base = [top for top, _ in argmaxes(lm, others)]
    weights, batches = Weights(lm.model), [records[i : i + size] for i in range(0, len(records), size)]
    seconds: list[float] = []
    try:
        for index, batch in enumerate(batches):
            _, took = timed(lambda i=index, b=batch: edit(lm, weights, module, i, b), str(lm.device))
            seconds.append(took["cpu_s"])
        said = argmaxes(lm, asked)
        kept = [top == was for (top, _), was in zip(argmaxes(lm, others), base, strict=True)]
    finally:
        weights.restore()
    return {
        "eta": eta,
        "modules": len(module.modules_edited),
        "edits_per_cpu_s": len(records) / sum(seconds),
        "cpu_s_of_first_and_last_batch": [seconds[0], seconds[-1]],
        "all": share(said),
        "first": share(said[:size]),
        "neighbours": sum(kept) / len(kept),
    }


def main() -> None:
    """Run every setting, print and save the figures."""
    parser = speed_parser(__doc__, "--data is needed, not")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--eta", type=float, nargs="*", default=[1e-6, 1e-5])
    parser.add_argument("--places", nargs="*", default=list(PLACES), choices=list(PLACES))
    a = parser.parse_args()
    if a.data is None:
        parser.error("--data: name a CounterFact file")
    lm = get_lm(a.model, a.dtype, a.device)
    records = read_counterfact(a.data)[: a.requests]
    found: dict[str, Any] = {}
    for name in a.places:
        for eta in a.eta:
            figures = measure(lm, records, a.batch, PLACES[name], eta)
            found[f"{name}, eta {eta:g}"] = figures
            print(name, {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in figures.items()})
    settings = {key: value for key, value in vars(a).items() if key != "layer"} | {"threads": torch.get_num_threads()}
    figures = {"settings": settings, "peak_rss_gib": peak_rss_gib(), "found": found}
    print("saved", save(a.save or f"ultraedit_speed_{a.device}", figures).name)


if __name__ == "__main__":
    main()
