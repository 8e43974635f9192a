"""Time of v* per edit: (a) as ROME's published code does it, (b) replay, (c) replay with lanes, in one run.

    python benchmarks/speed/edit_speed.py --model smollm2-135m --data ../shared/data/rep_counterfact_valid.json
    python benchmarks/speed/edit_speed.py --model random:llama-7b --dtype bfloat16 --device cuda --lanes 32

(a) runs every row of every step through the whole model, one request at a time, and takes logits at every
position, as the published code does. All three use the same model, contexts, steps, learning rate and stop
rule; set-up (captures, contexts' tokenising) is counted in each. Needs torch and transformers alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import get_lm, peak_rss_gib, read_requests, save, speed_parser, timed
from kedit.forward.replay import Site
from kedit.keyvalue import NLL, KLDivergence, ValueObjective, ValueOptimization, WeightDecay, optimise
from kedit.model.lm import LM
from kedit.model.tokenization import encode_subject, pad_right
from kedit.request import EditRequest

TERMS = (NLL(), KLDivergence(0.0625), WeightDecay(1e-3))
CLAMP, LR = 4.0, 0.5


def contexts(n_short: int, n_long: int) -> list[str]:
    """Fixed contexts of ROME's sizes (5 and 10 tokens), so that the benchmark needs no sampling."""
    text = "the old house stood near a small river and people came from every town to see it again"
    words = text.split()
    texts = [" ".join(words[(3 * i + j) % len(words)] for j in range(4)) for i in range(n_short)]
    texts += [" ".join(words[(5 * i + j) % len(words)] for j in range(9)) for i in range(n_long)]
    return ["{}", *(text.capitalize() + ". {}" for text in texts)]


def published_way(
    lm: LM, request: EditRequest, templates: Sequence[str], layer: int, steps: int, stop: float
) -> Tensor:
    """(a): v* of one request by full forward passes of the whole padded batch, full logits."""
    rows = [encode_subject(lm, request.prompt, request.named(), request.target_new, c) for c in templates]
    kl = encode_subject(lm, "{} is a", request.named())
    ids, mask = pad_right([t.ids[:-1] for t in rows] + [kl.ids], lm.pad_id, lm.device)
    labels = torch.full_like(ids, -100)
    for i, t in enumerate(rows):
        labels[i, t.n_prompt - 1 : len(t.ids) - 1] = torch.tensor(t.target, device=lm.device)
    at = torch.tensor([t.subject_last for t in rows] + [kl.subject_last], device=lm.device)
    every = torch.arange(len(at), device=lm.device)
    delta = torch.zeros(lm.d_model, device=lm.device, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=LR)
    v_init: list[Tensor] = []
    reference: list[Tensor] = []

    def add(_: object, args: object, out: Tensor) -> Tensor:
        if not v_init:
            v_init.append(out[0, at[0]].detach().float())
        out = out.clone()
        out[every, at] = (out[every, at].float() + delta).to(out.dtype)
        return out

    handle = lm.arch.module(lm.model, "mlp", layer).register_forward_hook(add)
    for step in range(steps):
        adam.zero_grad()
        logits = lm.model(input_ids=ids, attention_mask=mask).logits.float()
        logp = logits.log_softmax(-1)
        if not reference:
            reference.append(logp[-1, at[-1]].detach())
        picked = logp[:-1].gather(2, labels[:-1].clamp(min=0)[..., None])[..., 0]
        real = labels[:-1] >= 0
        nll = -(picked * real).sum(1).div(real.sum(1)).mean()
        kl_loss = 0.0625 * F.kl_div(reference[0], logp[-1, at[-1]], log_target=True, reduction="sum")
        loss = nll + kl_loss + 1e-3 * delta.norm() / v_init[0].norm() ** 2
        if float(loss.detach()) < stop or step == steps - 1:
            break
        loss.backward()
        adam.step()
        with torch.no_grad():
            limit = CLAMP * v_init[0].norm()
            if delta.norm() > limit:
                delta *= limit / delta.norm()
    handle.remove()
    return (v_init[0] + delta).detach()


def replay_way(
    lm: LM,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    layer: int,
    steps: int,
    stop: float,
    lanes: int,
) -> Tensor:
    """(b) with `lanes` 1, (c) with more: requests sorted by the length of what follows the subject."""
    length = [
        len(t.ids) - t.subject_last for t in (encode_subject(lm, r.prompt, r.named(), r.target_new) for r in requests)
    ]
    order = sorted(range(len(requests)), key=length.__getitem__)
    out: list[Tensor | None] = [None] * len(requests)
    for start in range(0, len(order), lanes):
        group = order[start : start + lanes]
        objective = ValueObjective(lm, [requests[i] for i in group], templates, [Site("mlp", layer)], TERMS)
        v_star = optimise(ValueOptimization(objective, stop, CLAMP), lr=LR, steps=steps)
        for i, value in zip(group, v_star, strict=True):
            out[i] = value
    return torch.stack([value for value in out if value is not None])


def main() -> None:
    """Run the three ways and print and save the figures."""
    parser = speed_parser(__doc__, "made-up requests")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--stop", type=float, default=5e-2, help="stop rule of v*; 0 takes every step")
    parser.add_argument("--contexts", type=int, nargs=2, default=[10, 10], help="short and long ones, and the bare one")
    parser.add_argument("--lanes", type=int, nargs="+", default=[4])
    parser.add_argument("--slow", type=int, help="requests of (a), where all would take too long")
    parser.add_argument("--compile", action="store_true", help="the replayed layers through torch.compile")
    a = parser.parse_args()
    lm = get_lm(a.model, a.dtype, a.device)
    lm.compiles = a.compile
    requests, templates = read_requests(a.data, a.requests), contexts(*a.contexts)
    n_slow = min(a.slow or len(requests), len(requests))
    replay_way(lm, requests[:1], templates, a.layer, 2, 0.0, 1)  # warm-up

    figures: dict[str, dict[str, float]] = {}

    def record(name: str, n: int, seconds: dict[str, float]) -> None:
        per_edit = {f"{key}_per_edit": value / n for key, value in seconds.items() if key.endswith("_s")}
        figures[name] = per_edit | {key: value for key, value in seconds.items() if not key.endswith("_s")}
        figures[name] |= {"edits": n, "peak_rss_gib_so_far": peak_rss_gib()}

    def differs(v: Tensor, n: int) -> float:
        return float((v[:n] - slow[:n]).abs().max() / slow[:n].abs().max())

    # the frugal ways first, so that each one's peak memory so far is its own
    fast = {}
    for n_lanes in (1, *a.lanes):
        name = "b_replay" if n_lanes == 1 else f"c_replay_{n_lanes}_lanes"
        fast[name], seconds = timed(
            lambda n=n_lanes: replay_way(lm, requests, templates, a.layer, a.steps, a.stop, n), a.device
        )
        record(name, len(requests), seconds)
    slow, seconds = timed(
        lambda: torch.stack([published_way(lm, r, templates, a.layer, a.steps, a.stop) for r in requests[:n_slow]]),
        a.device,
    )
    record("a_published", n_slow, seconds)
    key = "cpu_s_per_edit" if a.device == "cpu" else "wall_s_per_edit"
    for name, figure in figures.items():
        figure["times_faster_than_a"] = figures["a_published"][key] / figure[key]
        if name in fast:
            figure["largest_v_star_difference_relative"] = differs(fast[name], n_slow)
        print(name, {k: round(v, 6) for k, v in figure.items()})
    print("saved", save(a.save or f"edit_speed_{a.device}", {"settings": vars(a), "figures": figures}).name)


if __name__ == "__main__":
    main()
